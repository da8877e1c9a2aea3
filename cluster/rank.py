"""What a rank knows of itself, and how rank 0 offers the others a place to meet."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from pathlib import Path

import ray


@dataclass(frozen=True, slots=True)
class MeetingPoint:
    """Where the ranks of a process group meet: an address of rank 0's node."""

    master_addr: str
    master_port: int


@dataclass(frozen=True, slots=True)
class RankInfo:
    """One process of a role."""

    role: str
    rank: int
    world_size: int
    log_dir: str = ""  # folder for <role>-<rank>.log; empty: Ray's own logs only

    def open_log(self) -> None:
        """Send this process's log records to its own file."""
        if not self.log_dir:
            return
        folder = Path(self.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder / f"{self.role}-{self.rank}.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.info("%s rank %d of %d", self.role, self.rank, self.world_size)


def free_meeting_point() -> MeetingPoint:
    """A port that is free now on this node. Called on rank 0, at once before the group is made there."""
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return MeetingPoint(address, probe.getsockname()[1])
