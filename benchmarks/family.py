"""The processes of a run: those below its command, and the roles, forks of servers (cluster/fork_server.py)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
from raylign.cluster.fork_client import MARK
from raylign.cluster.leftovers import marked_processes


def family(pid: int) -> list[psutil.Process]:
    """`pid`, its descendants, and every process of the clusters that they have started. Empty when it has ended."""
    try:
        found = {one.pid: one for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))}
    except psutil.Error:
        return []
    marks = set()
    for one in found.values():
        with contextlib.suppress(psutil.Error):
            marks.add(one.environ().get(MARK, ""))
    for mark in marks - {""}:
        for other in marked_processes(Path(mark).parent):
            with contextlib.suppress(psutil.Error):
                found.setdefault(other, psutil.Process(other))
    return list(found.values())
