"""Saves step 2 over step 1 with a fault before the n-th file-system call; a program, for each fault needs a process.

    python crashing_writer.py <folder> kill|error     prints {"calls": N, "outcomes": {n: how the save ended}}

Python's own audit events say which call comes next: open, mkdir, rename, remove, rmdir; fsync, which has none,
is wrapped. Folder n is left as the fault left it.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

from raylign.trainer.checkpoint import CheckpointError, CheckpointStore, RngState, RunState

KILLED = 9
_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir", "os.listdir"}


class Fault:
    """Counts the calls; at number `at` ends the process or fails the call."""

    def __init__(self, root: str, at: int, kind: str) -> None:
        self.root, self.at, self.kind = root, at, kind
        self.calls = 0
        self.on = False

    def call(self) -> None:
        if not self.on:
            return
        self.calls += 1
        if self.calls == self.at:
            if self.kind == "kill":
                os._exit(KILLED)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def audited(self, event: str, args: tuple[object, ...]) -> None:
        if event in _EVENTS and str(args[0]).startswith(self.root):
            self.call()


def state(step: int) -> RunState:
    return RunState(step=step, run_generation=1, data={"index": step}, kl={}, reward={}, rng=RngState.capture())


def save(store: CheckpointStore, step: int) -> None:
    draft = store.begin(step)
    for role in ("policy", "critic"):
        (draft.role(role) / "rank-00000.safetensors").write_bytes(bytes([step]) * 3000)
    store.commit(draft, state(step), num_ranks={"policy": 1, "critic": 1})


def attempt(root: Path, fault: Fault) -> str:
    """In this process. Returns how the save of step 2 ended."""
    store = CheckpointStore(root, keep=1)
    save(store, 1)
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        fault.call()
        sync(descriptor)

    os.fsync = fsync
    sys.addaudithook(fault.audited)
    fault.on = True
    try:
        save(store, 2)
        return f"saved {fault.calls}"
    except (OSError, CheckpointError) as error:
        return f"refused: {type(error).__name__}"
    finally:
        fault.on = False
        os.fsync = sync


def child(root: Path, at: int, kind: str) -> str:
    """The outcome in a process of its own, which the fault may end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.write(writer, attempt(root, Fault(str(root), at, kind)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    _, status = os.waitpid(pid, 0)
    return "killed" if os.waitstatus_to_exitcode(status) == KILLED else said


def main(folder: Path, kind: str) -> None:
    calls = int(child(folder / "0", 0, kind).split()[1])
    outcomes = {n: child(folder / str(n), n, kind) for n in range(1, calls + 1)}
    print(json.dumps({"calls": calls, "outcomes": outcomes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
