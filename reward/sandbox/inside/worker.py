"""The first process of a sandbox: number 1 of its process namespace, which no signal from inside can end.

Told to, it forks one child for one program, waits for it, and ends whatever that left behind. It holds nothing that the
program may not know: what a test expects stays outside. When the other end of its socket closes, it ends, and with it
the kernel ends every process of the sandbox. Runs from its text alone, so it imports the standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading  # noqa: F401  # loaded once, not by every program that uses it
import types
from contextlib import suppress
from typing import Any

NOT_FIRST = "there is no process namespace of its own"
_HEADER = struct.Struct("!I")
_ABOVE = 100  # descriptors of a job are first moved up here


def main() -> int:
    """Returns the exit status of this process, or of a child that ran a program to its end."""
    if os.getpid() != 1:  # it ends all others that it sees: without a namespace of its own, those of the machine
        sys.exit(NOT_FIRST)
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    hello, _ = _receive(control)
    _give_up_root(hello["user"])
    _load(hello["modules"])
    os.umask(0o022)
    _send(control, {"ready": os.getpid()})
    while True:
        try:
            job, descriptors = _receive(control)
        except EOFError:
            return 0
        child = os.fork()
        if child == 0:
            control.close()
            signal.set_wakeup_fd(-1)
            return _program(job, descriptors, hello["limits"])
        for descriptor in descriptors:
            os.close(descriptor)
        report = _watch(child, control, woken)
        if report is None:
            return 0
        _send(control, report)


def _watch(child: int, control: socket.socket, woken: int) -> dict[str, object] | None:
    """What became of the child, once nothing else is left in the sandbox. None: nobody waits for it any more."""
    status, usage = 0, None
    while usage is None:
        ready, _, _ = select.select([control.fileno(), woken], [], [], 1.0)
        if woken in ready:
            os.read(woken, 4096)
        while True:
            try:
                pid, ended, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == child:
                status, usage = ended, used
        if control.fileno() in ready:  # a word while a program runs can only be the end
            return None
    _end_the_rest()
    return {
        "status": os.waitstatus_to_exitcode(status),
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "max_rss_kb": usage.ru_maxrss,
    }


def _end_the_rest() -> None:
    """Daemons and their children: as the namespace's first process, a signal to -1 reaches all others.

    Anywhere else it would end the whole machine's processes, so it is sent by a namespace's first process only.
    """
    assert os.getpid() == 1
    while True:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _program(job: dict[str, Any], descriptors: list[int], limits: dict[str, list[int]]) -> int:
    """In the child: its own descriptors, limits and session, then the role that the job names."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _ABOVE) for descriptor in descriptors]
    null = os.open(os.devnull, os.O_RDWR)
    for place, descriptor in zip((0, 1, 2, 3, 4), [*moved[:2], null, *moved[2:]], strict=False):
        os.dup2(descriptor, place)
    os.closerange(len(moved) + 1, 4096)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8", errors="surrogateescape", closefd=False)
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value[0], value[1]))
    status: int = sys.modules[job["role"]].main(job["argument"])
    return status


def _give_up_root(user: int | None) -> None:
    """Where root started the sandbox: become a user without rights. Exits when root could be had again."""
    if user is None:
        return
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return
    sys.exit("root was not given up")


def _load(modules: dict[str, str]) -> None:
    """Modules from their texts, under their own names: nothing of the package lies in the sandbox."""
    for name, text in modules.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            package = types.ModuleType(".".join(parts[:depth]))
            package.__path__ = []
            sys.modules.setdefault(package.__name__, package)
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(text, f"<{name}>", "exec"), module.__dict__)


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    header, descriptors, _, _ = socket.recv_fds(control, _HEADER.size, 8)
    if len(header) < _HEADER.size:
        raise EOFError
    body = bytearray()
    (size,) = _HEADER.unpack(header)
    while len(body) < size:
        part = control.recv(min(size - len(body), 1 << 16))
        if not part:
            raise EOFError
        body += part
    return json.loads(body), list(descriptors)


def _send(control: socket.socket, message: dict[str, object]) -> None:
    body = json.dumps(message).encode()
    control.sendall(_HEADER.pack(len(body)) + body)


if __name__ == "__main__":
    sys.exit(main())
