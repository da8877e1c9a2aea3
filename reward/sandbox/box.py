"""One sandbox: bubblewrap's command line, its first process, and the socket over which that is told what to run.

A box runs the code of one answer and is closed then. Whatever ends it, ends every process in it.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from raylign.reward.sandbox.filter import system_call_filter
from raylign.reward.sandbox.limits import MEBIBYTE, Limits

PACKAGE = "raylign.reward.sandbox.inside"
MODULES = ("link", "program", "answer", "tests")
START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 5.0
_HEADER = struct.Struct("!I")
_MOST_REPORTED = 1 << 16  # bytes of a report of the first process
_USERS = range(20_000, 60_000)
"""Where root starts the sandbox, one of these by chance: limits on processes count by user."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


class BoxFailed(RuntimeError):
    """The sandbox itself did not do its part. Says nothing about the code in it."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """How sandboxes are made on this machine."""

    program: str  # bubblewrap's
    as_root: bool  # made with root's rights, which its first process gives up; else in a user namespace
    user: int | None = None  # who bubblewrap is run as; None: who we are

    def command(self, limits: Limits, control: int, filter_: int) -> list[str]:
        """The whole command. `control`, `filter_`: descriptors that it inherits."""
        rights = (
            "--unshare-pid --unshare-net --unshare-ipc --unshare-uts --unshare-cgroup-try --cap-drop ALL "
            "--cap-add CAP_SETUID --cap-add CAP_SETGID"
            if self.as_root
            else "--unshare-all --uid 65534 --gid 65534 --cap-drop ALL"
        )
        return [
            *(
                self.program,
                "--die-with-parent",
                "--new-session",
                "--as-pid-1",
                "--hostname",
                "sandbox",
                *rights.split(),
            ),
            *("--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8"),
            *("--setenv", "PYTHONHASHSEED", "0", "--setenv", "HOME", "/tmp"),
            *("--perms", "1777", "--size", str(limits.disk_mb * MEBIBYTE), "--tmpfs", "/tmp"),
            *_interpreter(),  # which may lie below /tmp
            *("--dir", "/dev", *(part for device in _DEVICES for part in ("--dev-bind", device, device))),
            *("--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(filter_), "--"),
            *(os.path.realpath(sys.executable), "-s", "-S", "-B", "-P", "-c", _inside()[f"{PACKAGE}.worker"]),
            str(control),
        ]


class Box:
    """A sandbox that is ready, or was used. bubblewrap ends it when the thread that started it ends."""

    def __init__(self, isolation: Isolation, limits: Limits) -> None:
        """Raises BoxFailed when it is not ready within START_TIMEOUT_S."""
        self._control, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the box
        with tempfile.TemporaryFile() as filter_:
            filter_.write(system_call_filter())
            filter_.seek(0)
            try:
                self._process = subprocess.Popen(
                    isolation.command(limits, theirs.fileno(), filter_.fileno()),
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors,
                    pass_fds=(theirs.fileno(), filter_.fileno()), env={}, cwd="/", umask=0o022,
                    user=isolation.user, group=isolation.user, extra_groups=None if isolation.user is None else [],
                )  # fmt: skip
            except OSError as error:
                raise BoxFailed(f"{isolation.program} cannot be run: {error}") from error
            finally:
                theirs.close()
        user = random.SystemRandom().choice(_USERS) if isolation.as_root else None
        modules = {name: text for name, text in _inside().items() if not name.endswith(".worker")}
        try:
            self._send({"user": user, "modules": modules, "limits": limits.rlimits()})
            self.report(time.monotonic() + START_TIMEOUT_S)
        except BoxFailed:
            self.close()
            raise

    @property
    def control(self) -> int:
        """Readable when the program that it was told to run has ended, or the sandbox failed."""
        return self._control.fileno()

    @property
    def alive(self) -> bool:
        """Whether the sandbox still runs."""
        return self._process.poll() is None

    def tell(self, role: str, argument: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Run a role of `inside`; the descriptors become its 0, 1, 3 and 4. Raises BoxFailed."""
        self._send({"role": f"{PACKAGE}.{role}", "argument": argument}, descriptors)

    def report(self, until: float) -> Mapping[str, Any]:
        """The first process's next word. Raises BoxFailed past `until` (of time.monotonic), or when it is gone."""
        (size,) = _HEADER.unpack(self._read(_HEADER.size, until))
        if size > _MOST_REPORTED:
            raise BoxFailed("its first process sent too much")
        reported: Mapping[str, Any] = json.loads(self._read(size, until))
        return reported

    def close(self) -> None:
        """End every process in it. Idempotent."""
        self._control.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # the kernel is still taking the processes down
            self._process.wait(END_TIMEOUT_S)
        self._errors.close()

    def _send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        body = json.dumps(message).encode()
        self._control.settimeout(START_TIMEOUT_S)
        try:
            socket.send_fds(self._control, [_HEADER.pack(len(body))], descriptors)
            self._control.sendall(body)
        except OSError as error:
            raise self._failed(error) from error

    def _read(self, size: int, until: float) -> bytes:
        read = bytearray()
        while len(read) < size:
            try:
                self._control.settimeout(max(0.001, until - time.monotonic()))
                part = self._control.recv(size - len(read))
            except OSError as error:
                raise self._failed(error) from error
            if not part:
                raise self._failed(None)
            read += part
        return bytes(read)

    def _failed(self, error: OSError | None) -> BoxFailed:
        """With what bubblewrap, or the first process, said last."""
        if not isinstance(error, TimeoutError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_TIMEOUT_S)
        self._errors.seek(0)
        said = self._errors.read(1 << 14).decode(errors="replace").strip().splitlines()
        return BoxFailed(said[-1] if said else f"it did not answer{f': {error}' if error else ''}")


@lru_cache(maxsize=1)
def _inside() -> Mapping[str, str]:
    """The modules that run in the sandbox, as texts: what lies beside this file need not be readable there."""
    folder = Path(__file__).parent / "inside"
    return {f"{PACKAGE}.{name}": (folder / f"{name}.py").read_text() for name in ("worker", *MODULES)}


@lru_cache(maxsize=1)
def _interpreter() -> tuple[str, ...]:
    """Arguments that show this interpreter and the libraries it is linked with, for reading, and nothing else."""
    return tuple(_binds())


def _binds() -> Iterator[str]:
    shown: list[Path] = [Path("/usr/lib")]
    executable, prefix = Path(os.path.realpath(sys.executable)), Path(sys.base_prefix)
    shown += [path for path in map(Path, ("/usr/lib64", "/usr/lib32")) if path.is_dir()]
    shown += [executable]
    if prefix != Path("/usr"):
        shown += [prefix / "lib"]
    for parent in sorted({parent for path in shown for parent in path.parents} - {Path("/"), Path("/tmp")}):
        yield from ("--perms", "0755", "--dir", str(parent))
    for path in shown:
        yield from ("--ro-bind", str(path), str(path))
    for top in map(Path, ("/lib", "/lib64", "/lib32")):
        if top.is_symlink():
            yield from ("--symlink", os.readlink(top), str(top))
        elif top.is_dir():
            yield from ("--ro-bind", str(top), str(top))
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")
    for name in ("site-packages", "dist-packages"):
        packages = Path(sysconfig.get_path("stdlib")) / name
        if packages.is_dir():
            yield from ("--perms", "0555", "--tmpfs", str(packages), "--remount-ro", str(packages))
