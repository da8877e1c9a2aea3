"""What Ray starts in place of a role's Python (`py_executable`): asks a fork server for the process, else becomes it.

    python -I -S fork_client.py default_worker.py ARGUMENTS...

Standard library only, and little of it: this runs once a role. Roles of one run import the same libraries, for five
to nine processor seconds each. So the first role that names modules in PRELOAD starts a server with its own
environment (cluster/fork_server.py), which imports them once; it and all that come later with the same environment are
forks of that. A run that knows its roles starts their servers before Ray (cluster/preloading.py).
A role that needs little, and no allocator or thread pool of its own, may BORROW the server of another kind.
Whatever goes wrong before the fork, the role starts as it would have without.
"""

import fcntl
import hashlib
import json
import os
import socket
import sys
import time
from pathlib import Path

PRELOAD = "RAYLIGN_PRELOAD"
"""Variable of a role's environment: the modules to import before the fork, with commas between them."""

BORROW = "RAYLIGN_BORROW"
"""Variable of a role's environment: any server whose first module is this one will do."""

MARK = "RAY_AUTH_TOKEN_PATH"
"""Set in every process of a cluster of ours: a file in its private folder, where the sockets lie too."""

PATIENCE_S = 180.0
"""For the server's imports, on a busy machine."""

BORROW_S = 3.0
"""How long another role is waited for that starts such a server: roles of a run start together."""

_NOT_READ_AT_IMPORT = {
    *("RAY_RAYLET_PID", "RAY_LD_PRELOAD_ON_WORKERS", "SPT_NOENV", "PYTHONBREAKPOINT"),
    "TORCHINDUCTOR_CACHE_DIR",
}
"""Variables that Ray sets in each worker and not in its driver, and one that torch's compiler sets when it is imported:
a driver may start servers before that."""

_SET_AFTER_THE_FORK = "_NUM_THREADS"
"""Endings of variables whose value a fork takes over from its own environment (cluster/fork_server.py)."""

_BACKLOG = 128
_SERVER = Path(__file__).with_name("fork_server.py")


def forked(arguments: list[str]) -> bool:
    """Whether a server has made the process that runs `arguments`."""
    environment = dict(os.environ)
    preload, borrow, mark = (environment.get(name, "") for name in (PRELOAD, BORROW, MARK))
    if not mark or not (preload or borrow):
        return False
    request = json.dumps({"arguments": arguments, "environment": environment, "folder": os.getcwd()}).encode()
    try:
        if preload:
            server = _connected(socket_path(Path(mark).parent, environment, os.getcwd()), arguments)
        else:
            server = _borrowed(Path(mark).parent, _prefix(borrow))
        with server:
            server.settimeout(PATIENCE_S)
            socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
            server.sendall(request)
            return server.recv(1) == b"y"
    except OSError:
        return False


def socket_path(folder: Path, environment: dict[str, str], working_dir: str) -> Path:
    """Of the server for roles with this environment: one that its imports cannot tell from theirs."""
    read = {
        name: value
        for name, value in environment.items()
        if name not in _NOT_READ_AT_IMPORT and not name.endswith(_SET_AFTER_THE_FORK)
    }
    key = hashlib.sha256(json.dumps([sorted(read.items()), working_dir]).encode()).hexdigest()[:16]
    return folder / f"{_prefix(environment[PRELOAD])}{key}"


def listening_at(path: Path) -> socket.socket:
    """Raises OSError."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(_BACKLOG)
    return listening


def _prefix(modules: str) -> str:
    """Of the sockets of servers whose first module is that of `modules`. Short: a socket's path ends at 107 bytes."""
    return f"fork-{modules.partition(',')[0].rpartition('.')[2][:16]}-"


def _borrowed(folder: Path, prefix: str) -> socket.socket:
    """Raises OSError where no such server turns up."""
    deadline = time.monotonic() + BORROW_S
    while True:
        for path in folder.glob(f"{prefix}*[0-9a-f]"):
            asking = socket.socket(socket.AF_UNIX)
            try:
                asking.connect(str(path))
            except OSError:
                asking.close()
                continue
            return asking
        if time.monotonic() > deadline:
            raise FileNotFoundError(prefix)
        time.sleep(0.05)


def _connected(path: Path, arguments: list[str]) -> socket.socket:
    """A connection to the server at `path`, started if there is none. It answers when its imports are done."""
    with open(f"{path}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asking = socket.socket(socket.AF_UNIX)
        try:
            asking.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            with listening_at(path) as listening:
                _start_server(listening, arguments)
            asking.connect(str(path))
        return asking


def server_command(listening: socket.socket, arguments: list[str]) -> list[str]:
    """Of a server that has inherited `listening`. `arguments`: of one of its roles, whose script comes first."""
    return [sys.executable, str(_SERVER), str(listening.fileno()), *arguments]


def _start_server(listening: socket.socket, arguments: list[str]) -> None:
    """It inherits the socket. `arguments` only make its command line long enough for the names of its forks."""
    if os.fork() == 0:
        try:
            listening.set_inheritable(True)
            os.setsid()
            os.execv(sys.executable, server_command(listening, arguments))
        finally:
            os._exit(1)


if __name__ == "__main__":
    if not forked(sys.argv[1:]):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
