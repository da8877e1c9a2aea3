"""Torch's lock on the build of a native extension, which outlives a builder that was killed.

DeepSpeed builds its CPU optimizer at first use. Torch guards the build with a file that it creates and removes; after
a kill the file stays, and every later start waits on it for ever. A builder keeps the file open, so a lock that no
process has open belongs to nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)


def free_build_locks() -> None:
    """Remove the locks that no live process of this machine holds; name those that one does, for they are waited on."""
    from torch.utils.cpp_extension import get_default_build_root  # brings setuptools along

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    if not root.is_dir():
        return
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # between a look and its removal nobody else's start may build anew
        for lock in sorted(root.glob("**/lock")):
            holders = _holders(lock)
            if holders:
                _log.warning("waiting for process %s, which builds %s", holders[0], lock.parent)
            elif _is_ours(lock):
                _log.warning("%s was left by a build that was killed; removed", lock)
                lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_ours(lock: Path) -> bool:
    """Another user's process cannot be looked into, so its locks are left alone."""
    try:
        return lock.stat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def _holders(lock: Path) -> list[int]:
    """Processes that have the file open."""
    found = lock.resolve()
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and str(found) in _open_files(p)]


def _open_files(process: Path) -> set[str]:
    """What a process has open; nothing for one that ended or belongs to another user."""
    names = set()
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(process / "fd"):
            with contextlib.suppress(OSError):  # this one was closed meanwhile
                names.add(os.readlink(process / "fd" / descriptor))
    return names
