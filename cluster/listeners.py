"""What listens for connections on this machine, by the kernel's own list: `ss -ltnp` without the tool."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

_LISTENING = "0A"
_RAY = ("gcs_server", "raylet", "ray::", "ray-dashboard")
"""How Ray's processes call themselves."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket."""

    process: str
    host: str  # of /proc/net: hexadecimal, in the machine's byte order
    port: int

    @property
    def on_loopback(self) -> bool:
        """127.0.0.0/8, ::1, or an IPv4 loopback address in IPv6 form: no other machine reaches it."""
        return self.host[-2:] == "7F" or self.host == "0" * 24 + "01000000"


def listeners(pids: Set[int]) -> list[Listener]:
    """Of these processes; those of another user are seen by root alone."""
    owners: dict[str, str] = {}
    for pid in pids:
        for inode in _sockets(pid):
            owners[inode] = _name(pid)
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and fields[9] in owners:
                host, _, port = fields[1].partition(":")
                found.append(Listener(owners[fields[9]], host, int(port, 16)))
    return found


def ray_processes() -> set[int]:
    """Pids of every Ray process on this machine that can be looked at."""
    return {int(process.name) for process in Path("/proc").glob("[0-9]*") if _name(int(process.name)).startswith(_RAY)}


def _sockets(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
