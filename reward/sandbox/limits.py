"""What a program in the sandbox may use. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MEBIBYTE = 1 << 20
LIMITS_OF = (
    "memory and processor time are limited by process, the number of processes, files and time by the clock by answer"
)
"""For people: there is no limit on the memory of all processes of an answer together (docs/sandbox.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one answer's code. What a kernel limit holds for one process says so."""

    cpu_s: int = 2  # processor seconds, each process
    timeout_s: float = 10.0  # wall clock, all tests of an answer together
    memory_mb: int = 512  # MiB of address space, each process
    processes: int = 4  # processes and threads, the program itself included
    disk_mb: int = 16  # MiB of files together
    output_kb: int = 256  # KiB on standard output, each run
    open_files: int = 64

    def rlimits(self) -> Mapping[str, tuple[int, int]]:
        """Soft and hard limits by their names in `resource`, for the process that runs the code."""
        disk, memory = self.disk_mb * MEBIBYTE, self.memory_mb * MEBIBYTE
        hard = {
            "RLIMIT_AS": memory,
            "RLIMIT_FSIZE": disk,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_NPROC": self.processes + 1,  # the sandbox's first process counts
            "RLIMIT_CPU": self.cpu_s,  # at the hard limit the kernel sends SIGKILL, which cannot be caught
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_SIGPENDING": 64,
        }
        return {name: (value, value) for name, value in hard.items()}
