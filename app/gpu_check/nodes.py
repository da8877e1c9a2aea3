"""Stage D: several cards of this node together. Checks over several nodes are not written yet."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from raylign.app.gpu_check import transfer
from raylign.app.gpu_check.harness import Check, Measured, NotRun, needs_cuda

DEADLINE_S = 60.0
NUMEL = 256 << 20  # 1 GB of float32


def checks() -> Iterator[Check]:
    """All of the stage."""
    yield Check("all-reduce over the cards of this node", all_reduce)
    yield from transfer.checks()


def all_reduce(device: torch.device) -> Measured:
    """GB/s a card moves in an all-reduce of 1 GB (algorithm bandwidth), within a deadline."""
    needs_cuda(device)
    cards = torch.cuda.device_count()
    if cards < 2:
        raise NotRun("one card only")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="raylign-gpu-") as folder:
        ranks = mp.start_processes(_rank, (cards, port, folder), nprocs=cards, join=False, start_method="spawn")
        deadline = time.monotonic() + DEADLINE_S
        try:
            while not ranks.join(timeout=1):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{cards} cards did not all-reduce within {DEADLINE_S:g} s")
        finally:
            for process in ranks.processes:
                if process.is_alive():
                    process.kill()
        rate = float((Path(folder) / "rate").read_text())
    return Measured(
        rate, "GB/s", 20.0, at_least=True, note=f"{cards} cards, NIC {os.environ.get('NCCL_SOCKET_IFNAME', 'auto')}"
    )


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    torch.cuda.set_device(rank)
    address, patience = f"tcp://127.0.0.1:{port}", timedelta(seconds=DEADLINE_S)
    dist.init_process_group("nccl", init_method=address, timeout=patience, world_size=world, rank=rank)
    tensor = torch.ones(NUMEL, device="cuda")
    dist.all_reduce(tensor)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(5):
        dist.all_reduce(tensor)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / 5
    if rank == 0:
        (Path(folder) / "rate").write_text(str(tensor.nbytes / seconds / 1e9))
    dist.destroy_process_group()
