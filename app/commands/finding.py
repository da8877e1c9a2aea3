"""One line of `raylign doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined."""

    mark: str  # "ok", "note" (may matter), "bad" (a run would fail)
    name: str
    text: str

    @property
    def fatal(self) -> bool:
        """True when a run would fail."""
        return self.mark == "bad"

    def __str__(self) -> str:
        return f"{self.mark:<5} {self.name:<14} {self.text}"
