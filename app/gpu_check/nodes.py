"""Stage D: several cards of this node together. Checks over several nodes are not written yet."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from raylign.app.gpu_check import transfer
from raylign.app.gpu_check.harness import Check, Measured, NotRun, needs_cuda, timed

DEADLINE_S = 60.0
NUMEL = 256 << 20
"""1 GB of float32."""


def checks() -> Iterator[Check]:
    """All of the stage."""
    yield Check("all-reduce over the cards of this node", all_reduce)
    yield from transfer.checks()


def all_reduce(device: torch.device) -> Measured:
    """GB/s a card moves in an all-reduce of 1 GB (algorithm bandwidth), within a deadline."""
    needs_cuda(device)
    if (cards := torch.cuda.device_count()) < 2:
        raise NotRun("one card only")
    return reduced(cards, "nccl")


def reduced(members: int, backend: str, numel: int = NUMEL, timeout_s: float = DEADLINE_S) -> Measured:
    """All-reduce of `numel` float32 among `members` processes: `nccl`, a card each, or `gloo`, on the CPU.

    Raises TimeoutError when they did not finish in time, and whatever a member raised; none of them is left.
    """
    with tempfile.TemporaryDirectory(prefix="raylign-gpu-") as folder:
        args = (members, backend, numel, timeout_s, folder)
        ranks = mp.start_processes(_rank, args, nprocs=members, join=False, start_method="spawn")
        deadline = time.monotonic() + timeout_s
        try:
            while not ranks.join(timeout=0.2):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{members} members did not all-reduce within {timeout_s:g} s")
        finally:
            for process in ranks.processes:
                if process.is_alive():
                    process.kill()
        rate = float((Path(folder) / "rate").read_text())
    limit = 20.0 if backend == "nccl" else None
    where = os.environ.get(f"{backend.upper()}_SOCKET_IFNAME", "auto")
    return Measured(rate, "GB/s", limit, at_least=True, note=f"{members} members, NIC {where}")


def _rank(rank: int, members: int, backend: str, numel: int, timeout_s: float, folder: str) -> None:
    device = torch.device(f"cuda:{rank}" if backend == "nccl" else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=timeout_s)
    dist.init_process_group(backend, init_method=meeting, timeout=patience, world_size=members, rank=rank)
    tensor = torch.full((numel,), float(rank), device=device)
    dist.all_reduce(tensor)
    if not bool((tensor == sum(range(members))).all()):
        raise ArithmeticError(f"rank {rank}: the sum of the ranks is not {sum(range(members))} everywhere")
    seconds = timed(device, lambda: dist.all_reduce(tensor.fill_(1.0)))
    if rank == 0:
        (Path(folder) / "rate").write_text(str(tensor.nbytes / seconds / 1e9))
    dist.destroy_process_group()
