"""scale.json of a run folder: the number of rollout workers a person has asked a live run for.

A file and no port: whoever may write the run folder may scale the run, and nobody else.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from raylign.conf.errors import UserError
from raylign.records.atomic import write_atomic
from raylign.records.run_folder import RunPaths

FILE = "scale.json"
MAX_WORKERS = 4096


def give_order(folder: Path, *, rollout: int) -> None:
    """Ask the run in `folder` for `rollout` workers. Raises UserError when no process has the run open."""
    if not 1 <= rollout <= MAX_WORKERS:
        raise UserError(f"--rollout {rollout}: give a number from 1 to {MAX_WORKERS}")
    if not _is_live(RunPaths(folder).lock):
        raise UserError(f"{folder} is not running; start it with rollout.num_workers={rollout}")
    write_atomic(folder / FILE, json.dumps({"rollout": rollout}) + "\n")


def read_order(folder: Path, *, otherwise: int) -> int:
    """The workers asked for; `otherwise` where nothing was, or what is there cannot be read as an order."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))["rollout"]
    except (OSError, ValueError, KeyError, TypeError):
        return otherwise
    return found if type(found) is int and 1 <= found <= MAX_WORKERS else otherwise


def clear_order(folder: Path) -> None:
    """A start begins with its settings: an order is for the life it was given in."""
    (folder / FILE).unlink(missing_ok=True)


def _is_live(lock: Path) -> bool:
    """Whether some process holds the run's lock."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
