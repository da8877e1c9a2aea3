"""How the ranks of one learner find each other."""

from __future__ import annotations

import os
import socket
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from raylign.conf.schema import Device

_BACKLOG = 4096
"""Ranks that connect at once; the kernel takes its own limit where that is less."""
_listening: dict[int, socket.socket] = {}


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks of one learner meet. `timeout_s` bounds every collective."""

    rank: int
    world_size: int
    master_addr: str
    master_port: int
    timeout_s: float = 1800.0
    hosted: bool = False  # by a process that is no rank (`open_store`); else rank 0 has the store


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


def listen(address: str) -> int:
    """A port of `address` at which this process listens from now on; it becomes rank 0 there (`join`).

    A port that is only looked up can be given to any connection of the node before it is listened at.
    """
    server = socket.create_server((address, 0), backlog=_BACKLOG)
    port: int = server.getsockname()[1]
    _listening[port] = server
    return port


def open_store(address: str) -> dist.TCPStore:
    """A store for ranks that are other processes (`Rendezvous.hosted`), at a port of its own choice."""
    server = socket.create_server((address, 0), backlog=_BACKLOG)
    port = server.getsockname()[1]
    return dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())


def _store(meeting: Rendezvous) -> dist.TCPStore:
    listening, master = None, meeting.rank == 0 and not meeting.hosted
    if master:
        place = (meeting.master_addr, meeting.master_port)
        server = _listening.pop(meeting.master_port, None) or socket.create_server(place, backlog=_BACKLOG)
        listening = server.detach()  # the store closes it
    return dist.TCPStore(
        meeting.master_addr,
        meeting.master_port,
        meeting.world_size,
        is_master=master,
        timeout=timedelta(seconds=meeting.timeout_s),
        master_listen_fd=listening,
    )
