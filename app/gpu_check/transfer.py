"""Stage D: weights by broadcast over the cards of this node, and what becomes of it when a member stops.

The group of rollout/broadcast.py itself, each member a process with a card of its own: NCCL; with `cpu`, gloo.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.multiprocessing as mp
from raylign.app.gpu_check.harness import Check, Measured, NotRun, needs_cuda
from raylign.rollout.broadcast import TransferGroup, open_link
from raylign.rollout.fingerprint import DigestKind, tensor_digest
from raylign.rollout.interfaces import TensorSpec, TransferLink, WeightUpdateError
from torch import Tensor

PATIENCE_S = 60.0
HASTY_S = 10.0
"""Deadline of the transfer in which a member stops."""
ROWS = 4096
TENSORS = 32  # of 4096 x 4096 in bfloat16: 1 GB


def checks() -> Iterator[Check]:
    """Both; on a machine with one card neither is run."""
    yield Check("weights by broadcast over the cards of this node", lambda device: sent(_cards(device), "cuda"))
    yield Check("a member that stops ends the others' transfer in time", lambda device: stopped(_cards(device), "cuda"))


def _cards(device: torch.device) -> int:
    needs_cuda(device)
    if (cards := torch.cuda.device_count()) < 2:
        raise NotRun("one card only")
    return cards


def sent(members: int, kind: str, rows: int = ROWS) -> Measured:
    """GB/s of a transfer whose digests are equal on every member; the second of two, so that NCCL has started."""
    said = _play(members, kind, rows, PATIENCE_S, stops=False)
    digests = {tuple(one["digests"]) for one in said}
    if len(digests) != 1 or any(one["error"] for one in said):
        return Measured(float(len(digests)), "different weights", -1.0, note=str([one["error"] for one in said]))
    num_bytes = TENSORS * rows * rows * 2
    return Measured(num_bytes / said[0]["seconds"] / 1e9, "GB/s", note=f"{members} members, equal on all")


def stopped(members: int, kind: str, rows: int = ROWS) -> Measured:
    """Seconds until every other member has ended, when the last one stops half-way."""
    said = _play(members, kind, rows, HASTY_S, stops=True)
    late = [one["seconds"] for one in said[:-1] if one["error"]]
    if len(late) < members - 1:
        return Measured(float(len(late)), f"of {members - 1} members ended", float(members - 1), at_least=True)
    return Measured(max(late), "s", 2 * HASTY_S)


def _play(members: int, kind: str, rows: int, timeout_s: float, *, stops: bool) -> list[dict]:
    """What each member says; the last one nothing, where it stops. TimeoutError when a deadline did not hold."""
    with tempfile.TemporaryDirectory(prefix="raylign-gpu-") as folder:
        args = (members, kind, rows, timeout_s, stops, folder)
        ranks = mp.start_processes(_rank, args, nprocs=members, join=False, start_method="spawn")
        files = [Path(folder) / f"said-{rank}" for rank in range(members - stops)]
        deadline = time.monotonic() + 2 * timeout_s + PATIENCE_S
        try:
            while not all(file.exists() for file in files):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"of {members} members {[f.name for f in files if not f.exists()]} did not end")
                time.sleep(0.1)
        finally:
            for process in ranks.processes:
                process.kill()  # a stopped one too
        said = [json.loads(file.read_text()) for file in files]
        return [*said, {"digests": [], "error": "stopped", "seconds": 0.0}] if stops else said


def _weights(rows: int, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    for index in range(TENSORS):
        draw = torch.Generator(device).manual_seed(index)
        yield f"w{index}", torch.randn(rows, rows, generator=draw, device=device).bfloat16()


def _rank(rank: int, members: int, kind: str, rows: int, timeout_s: float, stops: bool, folder: str) -> None:
    device = torch.device(f"cuda:{rank}" if kind == "cuda" else "cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    specs = [TensorSpec(f"w{index}", (rows, rows), "bfloat16", "") for index in range(TENSORS)]
    said = {"digests": [], "error": "", "seconds": 0.0}
    for turn in range(1 if stops else 2):
        started = time.perf_counter()
        try:
            group = _joined(rank, members, device, timeout_s, Path(folder) / f"link-{turn}")
            started = time.perf_counter()
            if rank == 0:
                said["digests"] = [tensor_digest(t, DigestKind.ADDITIVE) for _, t in _weights(rows, device)]
                started = time.perf_counter()
                group.send(specs, _weights(rows, device))
            else:
                said["digests"] = _received(group, specs, stop_at=TENSORS // 2 if stops and rank == members - 1 else -1)
        except WeightUpdateError as error:
            said["error"] = str(error)
        said["seconds"] = time.perf_counter() - started
    done = Path(folder) / f"said-{rank}"
    done.with_suffix(".part").write_text(json.dumps(said))
    done.with_suffix(".part").rename(done)


def _joined(rank: int, members: int, device: torch.device, timeout_s: float, meeting: Path) -> TransferGroup:
    if rank == 0:
        link, store = open_link(
            "127.0.0.1", workers=members - 1, ranks_per_worker=1, timeout_s=timeout_s, bucket_bytes=64 << 20
        )
        meeting.with_suffix(".part").write_text(json.dumps([link.port]))
        meeting.with_suffix(".part").rename(meeting)
        group = TransferGroup(link, 0, device, store)
    else:
        until = time.monotonic() + PATIENCE_S
        while not meeting.exists():
            if time.monotonic() > until:
                raise WeightUpdateError("the first member did not begin")
            time.sleep(0.01)
        [port] = json.loads(meeting.read_text())
        link = TransferLink("127.0.0.1", port, members - 1, 1, timeout_s=timeout_s, bucket_bytes=64 << 20)
        group = TransferGroup(link, rank, device)
    group.meet()
    return group


def _received(group: TransferGroup, specs: list[TensorSpec], stop_at: int) -> list[str]:
    digests: list[str] = []
    for tensors in group.receive(specs):
        digests += [tensor_digest(tensor, DigestKind.ADDITIVE) for _, tensor in tensors]
        if 0 <= stop_at <= len(digests):
            os.kill(os.getpid(), signal.SIGSTOP)
    return digests
