"""What a rank knows of itself, and where it meets the others."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from raylign.cluster.stacks import answer_when_asked

_TAIL_BYTES = 1 << 16
_NAMED_ERROR = re.compile(r"\b\w*(?:Error|Exception)\b: \S.*$")
_SAYS_NOTHING = "Engine core initialization failed"


@dataclass(frozen=True, slots=True)
class MeetingPoint:
    """Where the ranks of a process group meet: an address of rank 0's node."""

    master_addr: str
    master_port: int


@dataclass(frozen=True, slots=True)
class RankInfo:
    """One process of a role."""

    role: str
    rank: int
    world_size: int
    log_dir: str = ""  # folder for <role>-<rank>.log; empty: Ray's own logs only

    def open_log(self) -> None:
        """Send this process's log records, and what it and its children print, to its own file."""
        if self.log_dir:
            keep_log(Path(self.log_dir) / f"{self.role}-{self.rank}.log")
            logging.getLogger().info("%s rank %d of %d", self.role, self.rank, self.world_size)


def keep_log(path: Path) -> None:
    """Log records of this process go to `path`, and so does what native code and child processes print.

    Asked for its stacks (cluster/stacks.py), the process writes them beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    with path.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    answer_when_asked(path)


def last_error(log: Path) -> str:
    """The last line of a role's log that names an exception, without its prefix; empty when there is none.

    Libraries that start processes of their own report only that one has failed; the reason is in what it printed.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    found = [match.group(0) for line in lines if (match := _NAMED_ERROR.search(line)) and _SAYS_NOTHING not in line]
    return found[-1] if found else ""
