"""Whether the kernel has killed for lack of memory: a role that dies so looks like any other that is gone.

The count is the machine's of the driver: of other nodes Ray reports. Linux; elsewhere nothing is reported.
"""

from __future__ import annotations

from pathlib import Path

_COUNTS = Path("/proc/vmstat")
_SMALLER = {
    "rollout": "rollout.max_concurrent, rollout.kv_cache_gb",
    "reward": "reward.micro_batch_tokens",
}


class MemoryKills:
    """Kills that have not been reported yet."""

    def __init__(self, counts: Path = _COUNTS) -> None:
        self._counts = counts
        self._seen = self._now()

    def note(self, role: str) -> str:
        """What to add to the news that a process of `role` is gone; empty when memory has nothing to do with it."""
        before, self._seen = self._seen, self._now()
        if self._seen <= before:
            return ""
        smaller = _SMALLER.get(role, f"{role}.micro_batch_tokens")
        return (
            f"; the kernel has killed {self._seen - before} of this machine's processes for lack of memory: lower "
            f"{smaller}, or the number of roles on this machine (`raylign plan` estimates what each takes)"
        )

    def _now(self) -> int:
        try:
            words = self._counts.read_text(encoding="ascii").split()
        except OSError:
            return 0
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0


memory_kills = MemoryKills()
