"""One process at a time in a folder: a lock that dies with its process, and whose text names the holder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path

from raylign.conf.errors import UserError


def hold(lock: Path, named: str, remedy: str) -> int:
    """The open file that holds the lock until it is closed. `named`: the setting that a refusal names.

    Raises UserError where another process holds it, and OSError where the file cannot be made.
    """
    lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock_fd)
        raise UserError(f"{named}: {lock.parent} is in use by {_holder(lock)}; {remedy}") from error
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    return lock_fd


def _holder(lock: Path) -> str:
    try:
        holder = json.loads(lock.read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (json.JSONDecodeError, KeyError):  # it is just being written
        return "another process"
