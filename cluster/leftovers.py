"""What a Ray started here leaves when its driver is killed, and who removes it. Standard library only.

Every process of such a cluster has the path of its token file in its environment, so they are found by that and by
nothing else. A small process waits at the end of a pipe that the driver holds: however the driver ends, the kernel
closes it. What outlives even that process is removed by the next start.

    raylign-ray-XXXXXXXX/        0700: Ray makes its own folders world-writable, but nobody gets that far
        owner                    pid and start time of the driver
        token                    0600
        r/                       Ray's folder; short, for socket paths end at 107 bytes
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/tmp")
PREFIX = "raylign-ray-"
TOKEN, RAY_FOLDER, _OWNER = "token", "r", "owner"

_GRACE_S = 3.0
"""Left to Ray's own processes: most of them notice by themselves that their driver is gone."""

_LIMIT_S = 30.0


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for one cluster, for this user only; it and the cluster's processes are gone afterwards in any case."""
    sweep_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=ROOT))  # 0700
    (folder / _OWNER).write_text(f"{os.getpid()} {_start_time(os.getpid())}", encoding="ascii")
    (folder / RAY_FOLDER).mkdir(mode=0o700)
    reaper = subprocess.Popen(
        [sys.executable, "-m", "raylign.cluster.leftovers", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for the driver
    )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        assert reaper.stdin is not None
        reaper.stdin.close()
        try:
            reaper.wait(timeout=_GRACE_S + _LIMIT_S)
        except subprocess.TimeoutExpired:
            reaper.kill()


def sweep_abandoned(root: Path = ROOT) -> list[Path]:
    """Remove the folders and processes of drivers that are no more; returns the folders."""
    swept = []
    for folder in sorted(root.glob(f"{PREFIX}*")):
        if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid() or _owned(folder):
            continue
        end_cluster(folder, grace_s=0.0)
        swept.append(folder)
    return swept


def end_cluster(folder: Path, *, grace_s: float) -> None:
    """Kill what is left of the cluster of `folder` after `grace_s` seconds, and remove the folder."""
    deadline = time.monotonic() + grace_s
    while marked_processes(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    deadline = time.monotonic() + _LIMIT_S
    while (left := marked_processes(folder)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def marked_processes(folder: Path) -> list[int]:
    """Processes of this user, zombies and this one left out, that were started with the token of `folder`."""
    mark = f"RAY_AUTH_TOKEN_PATH={folder / TOKEN}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()  # empty for a zombie
        except OSError:
            continue  # it has ended, or is somebody else's
        if mark in environment.split(b"\0") and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def _owned(folder: Path) -> bool:
    """Whether the driver that made `folder` lives. A folder that names none is not known to be ours: it stays."""
    try:
        pid, started = (folder / _OWNER).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return True
    return _start_time(int(pid)) == started


def _start_time(pid: int) -> str:
    """In clock ticks since the machine started: a pid may be used again, both together may not. Empty: no process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def main(folder: Path) -> None:
    """Wait until the driver closes the pipe or dies, then make sure that nothing is left."""
    sys.stdin.buffer.read()
    end_cluster(folder, grace_s=_GRACE_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
