"""Imports what a role needs once, and forks the processes of such roles. It ends with the raylet, or with the driver
that started it before there was one.

Nothing but imports happens before a fork, so there is one thread and no open connection: what a fork is given is what
its own imports would have made. Its environment is the server's but for the number of threads (the client sees to
that), so thread pools and allocators are set up as if the process had been started with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

PRELOAD = "RAYLIGN_PRELOAD"  # as fork_client has it, which stands alone
RAYLET = "RAY_RAYLET_PID"
"""Variable: the process that the server ends with, and its forks as well. Ray has it read when it is imported, so roles
of a server that a driver started watch their driver instead of the raylet, which is the driver's child."""
_REQUEST_S = 10.0
"""For a client to say what it wants, once it has connected."""


def serve(listening: socket.socket, owner: int) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each that asks until `owner`, a pidfd, ends: None. In a fork: what it was asked for."""
    while True:
        ready, _, _ = select.select([listening.fileno(), owner], [], [])
        if owner in ready:
            return None
        asked, _ = listening.accept()
        with asked:
            asked.settimeout(_REQUEST_S)
            try:
                request, descriptors = _read(asked)
            except (OSError, ValueError):
                continue  # it has ended, and starts its role without us
            if os.fork() == 0:
                listening.close()
                os.close(owner)
                return request, descriptors
            for descriptor in descriptors:
                os.close(descriptor)
            try:
                asked.sendall(b"y")
            except OSError:
                continue


def _read(asked: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size, descriptors, _, _ = socket.recv_fds(asked, 8, 3)
    wanted, found = int.from_bytes(size, "big"), b""
    while len(found) < wanted:
        part = asked.recv(wanted - len(found))
        if not part:
            raise ConnectionError("the client has ended")
        found += part
    return json.loads(found), descriptors


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Be the process that `python ARGUMENTS...` would be, with its output where the client's is."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.setpgid(0, 0)  # as the raylet has it, which ends a role with its whole group
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = request["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    random.seed()  # else all forks draw the same
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules and (threads := os.environ.get("OMP_NUM_THREADS")):
        sys.modules["torch"].set_num_threads(int(threads))  # not always the server's
    gc.enable()
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    """Import, serve."""
    owner = os.pidfd_open(int(os.environ[RAYLET]))
    gc.disable()
    sys.path[0] = str(Path(sys.argv[2]).parent)  # this file's folder is a part of a package, and no place for modules
    for name in os.environ[PRELOAD].split(","):
        with suppress(ImportError):  # the role says so itself, where it needs it
            importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the forks
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        wanted = serve(listening, owner)
    if wanted is not None:
        become(*wanted)


if __name__ == "__main__":
    main()
