"""Held-out shares with what they are worth: interval, number of rows, and whether chance explains them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from raylign.pages.numbers import percent
from raylign.records.summary import RunSummary

FEW_ROWS = 100
"""Below it the 95 % interval of a share near one half is wider than 20 points."""

_Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution
_KINDS = {
    "accuracy": "Agrees with the recorded choice",
    "rewards_accuracies": "Prefers the chosen answer more than the start model does",
}


@dataclass(frozen=True, slots=True)
class Share:
    """One share of held-out rows."""

    name: str
    value: float
    low: float
    high: float
    rows: int

    @property
    def interval(self) -> str:
        """In words, for a table cell."""
        return f"{percent(self.low)} to {percent(self.high)}"

    @property
    def worth(self) -> str:
        """What a reader should know before quoting it; empty when there is nothing."""
        parts = ["too few rows to rely on"] if self.rows < FEW_ROWS else []
        if self.low <= 0.5 <= self.high:
            parts.append("may be chance")
        return ", ".join(parts)


def wilson_interval(share: float | None, n: int) -> tuple[float | None, float | None]:
    """95 % interval of a share of `n` comparisons (Wilson 1927, eq. 5)."""
    if share is None or n == 0:
        return None, None
    z2 = _Z95**2 / n
    centre = (share + z2 / 2) / (1 + z2)
    half = _Z95 / (1 + z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def held_out_shares(summary: RunSummary) -> tuple[Share, ...]:
    """The accuracies among a summary's further figures whose number of rows is there too."""
    return tuple(_shares(summary))


def _shares(summary: RunSummary) -> Iterator[Share]:
    for key, value in summary.extra.items():
        for kind, words in _KINDS.items():
            group = key.removesuffix(f"_{kind}")
            rows = summary.extra.get(f"{group}_rows")
            if group == key or rows is None or not math.isfinite(value) or f"{group}_rewards" in summary.extra:
                continue
            low, high = wilson_interval(value, int(rows))
            if low is not None and high is not None:
                name = group.removeprefix("eval_").replace("_", " ")
                yield Share(words if name == "held out" else f"{words}: {name}", value, low, high, int(rows))
