"""Processes that meet as the ranks of a learner, without Ray: forks of one process that has imported what they need."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable

import torch.multiprocessing as mp

from tests.free_port import free_port

PRELOADED = ("raylign.trainer.workers.specs", "deepspeed", "raylign.data.sample_model")


def run_ranks(main: Callable[..., None], ranks: int, *args: object, deadline_s: float) -> None:
    """`main(rank, ranks, port, *args)` in `ranks` processes, none of which is left. Raises what a rank raised."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    context = mp.start_processes(main, (ranks, free_port(), *args), nprocs=ranks, join=False, start_method="forkserver")
    deadline = time.monotonic() + deadline_s
    try:
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, f"{ranks} ranks did not finish in {deadline_s} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
