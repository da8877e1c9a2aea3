"""scale.json of a run folder: the numbers of workers a person has asked a live run for.

A file and no port: whoever may write the run folder may scale the run, and nobody else.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from raylign.conf.errors import UserError
from raylign.records.atomic import write_atomic
from raylign.records.run_folder import RunPaths

FILE = "scale.json"
MAX_WORKERS = 4096


@dataclass(frozen=True, slots=True)
class Order:
    """Workers asked for, by role; None: nobody has asked."""

    rollout: int | None = None
    reward: int | None = None


ROLES = tuple(field.name for field in fields(Order))


def parse_order(words: Sequence[str]) -> Order:
    """`rollout=8 reward=2`. Raises UserError naming the word that is no order."""
    found: dict[str, int] = {}
    for word in words:
        role, _, number = word.partition("=")
        if role not in ROLES:
            raise UserError(f"{word}: only {' and '.join(ROLES)} workers come and go; write rollout=8 or reward=2")
        if not re.fullmatch(r"[0-9]{1,9}", number) or not 1 <= int(number) <= MAX_WORKERS:
            raise UserError(f"{word}: give a number from 1 to {MAX_WORKERS}")
        found[role] = int(number)
    if not found:
        raise UserError("nothing to change; write rollout=8, reward=2 or both")
    return Order(**found)


def give_order(folder: Path, order: Order) -> None:
    """Ask the run in `folder` for these workers; what an earlier order asked of another role stays asked.

    Raises UserError when no process has the run open.
    """
    if not _is_live(RunPaths(folder).lock):
        settings = {"rollout": "rollout.num_workers", "reward": "reward.num_replicas"}
        wanted = " ".join(f"{settings[role]}={number}" for role, number in asdict(order).items() if number)
        raise UserError(f"{folder} is not running; start it with {wanted}")
    asked = {role: number for role, number in asdict(order).items() if number is not None}
    before = {role: number for role, number in asdict(read_order(folder)).items() if number is not None}
    write_atomic(folder / FILE, json.dumps(before | asked) + "\n")


def read_order(folder: Path) -> Order:
    """What was asked for; nothing where the file is missing or cannot be read as an order."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Order()
    if not isinstance(found, dict):
        return Order()
    good = {r: n for r, n in found.items() if r in ROLES and type(n) is int and 1 <= n <= MAX_WORKERS}
    return Order(**good)


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
