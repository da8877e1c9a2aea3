"""How the ranks of one learner find each other."""

from __future__ import annotations

import os
import socket
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from raylign.conf.schema import Device


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks of one learner meet. `timeout_s` bounds every collective."""

    rank: int
    world_size: int
    master_addr: str
    master_port: int
    timeout_s: float = 1800.0


def join(rendezvous: Rendezvous, device: Device) -> None:
    """Enter the process group: gloo on CPU, nccl on CUDA, by the explicit address (no environment, no MPI).

    torch's own store listens on every interface of the node; ours listens on the address where the ranks meet.

    Must come before anything imports deepspeed: it picks its accelerator at import.
    """
    os.environ["DS_ACCELERATOR"] = device.value
    os.environ.setdefault("LOCAL_RANK", "0")  # Ray shows each actor its own GPUs only, so the local one is 0
    # DeepSpeed calls collectives by names that torch has just renamed, once a bucket.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    if dist.is_initialized():
        return
    dist.init_process_group(
        backend="gloo" if device is Device.cpu else "nccl",
        store=_store(rendezvous),
        rank=rendezvous.rank,
        world_size=rendezvous.world_size,
        timeout=timedelta(seconds=rendezvous.timeout_s),
    )


def _store(meeting: Rendezvous) -> dist.TCPStore:
    listening = None
    if meeting.rank == 0:
        server = socket.create_server((meeting.master_addr, meeting.master_port), backlog=meeting.world_size + 128)
        listening = server.detach()  # the store closes it
    return dist.TCPStore(
        meeting.master_addr,
        meeting.master_port,
        meeting.world_size,
        is_master=meeting.rank == 0,
        timeout=timedelta(seconds=meeting.timeout_s),
        master_listen_fd=listening,
    )
