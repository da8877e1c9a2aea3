"""Memory that the allocator of a CPU role keeps, and when it must give it back.

jemalloc is told to keep every page it was ever given (cluster/runtime_env.py), which halves a learner's step. But sizes
that vary from step to step fragment what is kept: a reward model held 4 GB after its first step and 15 GB after twenty.
So what a step has used is remembered, and when the process has grown beyond that everything unused is given back.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

GROWTH = 1.1
"""Of resident memory since the last settled step, before unused pages go back."""

_ALL_ARENAS = 4096
"""jemalloc's MALLCTL_ARENAS_ALL, the same in every release 5."""


class KeptPages:
    """Watches one process. `after_step` costs microseconds, or a tenth of a second a gigabyte when it gives back."""

    def __init__(self, growth: float = GROWTH) -> None:
        self._growth = growth
        self._settled = 0

    def after_step(self) -> bool:
        """Whether unused pages were given back. The first step, and the first after giving back, say what is normal."""
        resident = resident_bytes()
        if not self._settled:
            self._settled = resident
            return False
        if resident <= self._growth * self._settled:
            return False
        self._settled = 0
        return give_back_unused()


def give_back_unused() -> bool:
    """All pages that nothing uses, to the kernel. False where another allocator than jemalloc is at work."""
    process = ctypes.CDLL(None)
    if not hasattr(process, "mallctl"):
        return False
    failed: int = process.mallctl(b"arena.%d.purge" % _ALL_ARENAS, None, None, None, ctypes.c_size_t(0))
    return failed == 0


def resident_bytes() -> int:
    """Of this process, as the kernel counts it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * ctypes.CDLL(None).getpagesize()
