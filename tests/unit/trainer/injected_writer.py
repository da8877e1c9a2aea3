"""Saves step 2 over step 1 with a fault in the n-th system call of each kind, injected by strace; a program.

    python -m tests.unit.trainer.injected_writer <folder> signal=KILL|error=EIO|...

prints {"write 3": "killed" | "saved" | "refused", ...}, one entry a fault that struck; folder `write-3` is left as the
fault left it. strace counts the calls of each thread for itself, and the files are hashed by threads.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from raylign.trainer.checkpoint import CheckpointError, CheckpointStore

from tests.unit.trainer.crashing_writer import save

CALLS = (
    "openat", "write", "fsync", "rename", "mkdir", "unlinkat", "rmdir", "getdents64", "read", "newfstatat", "fstat",
    "lseek", "close",
)  # fmt: skip
SAVED, REFUSED = 0, 3
MOST = 200


def child(root: Path, ready: int, go: int) -> None:
    """Never returns."""
    store = CheckpointStore(root, keep=1)
    save(store, 1)
    os.write(ready, b"1")
    try:
        os.read(go, 1)
        save(store, 2)
    except (OSError, CheckpointError):
        os._exit(REFUSED)
    except BaseException:  # an error of another kind is one that nobody handles
        os._exit(70)
    os._exit(SAVED)


def attempt(root: Path, call: str, number: int, fault: str) -> str | None:
    """How the save ended; None when it makes fewer than `number` such calls."""
    ready, says = os.pipe()
    waits, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(root, says, waits)
    os.read(ready, 1)
    log = root.with_suffix(".strace")
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-o", str(log), "-e", f"trace={call}", "-e",
         f"inject={call}:{fault}:when={number}"],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    assert b"attached" in line, line
    os.write(go, b"1")
    _, status = os.waitpid(pid, 0)
    tracer.wait(30)
    for descriptor in (ready, says, waits, go):
        os.close(descriptor)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return "killed"
    struck = "(INJECTED)" in log.read_text()
    return {SAVED: "saved", REFUSED: "refused"}.get(code, f"exit code {code}") if struck else None


def main(folder: Path, fault: str) -> None:
    ends = {}
    for call in CALLS:
        for number in range(1, MOST):
            ended = attempt(folder / f"{call}-{number}", call, number, fault)
            if ended is None:
                break
            ends[f"{call} {number}"] = ended
    print(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
