"""Every metric name a run may log: what it is, its unit, what is healthy and what to do when it is not.

The one table behind docs/metrics.md, the Weights & Biases run notes and the report. `python -m
raylign.records.glossary FILE` writes the documentation page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from raylign.records.glossary_entry import Goal, MetricHelp
from raylign.records.glossary_table import ENTRIES

__all__ = [
    "ENTRIES",
    "Goal",
    "MetricHelp",
    "describe",
    "groups",
    "is_healthy",
    "markdown",
    "range_text",
    "title",
]

_SMALL = 1e-3  # a lower bound that only says "not 0"
_PLACEHOLDER = re.compile(r"<[a-z_]+>")


@dataclass(frozen=True, slots=True)
class _Matcher:
    regex: re.Pattern[str]
    entry: MetricHelp


def _matcher(entry: MetricHelp) -> _Matcher:
    parts = [re.escape(part) for part in _PLACEHOLDER.split(entry.pattern)]
    return _Matcher(re.compile("([^/]+)".join(parts)), entry)


@lru_cache(maxsize=1)
def _matchers() -> tuple[_Matcher, ...]:
    """Exact names before patterns, patterns with fewer placeholders first."""
    ordered = sorted(ENTRIES, key=lambda entry: len(_PLACEHOLDER.findall(entry.pattern)))
    return tuple(_matcher(entry) for entry in ordered)


def describe(name: str) -> MetricHelp | None:
    """The entry of a metric name; `<x>` in a pattern matches one part of a name. None: not in the glossary."""
    return next((m.entry for m in _matchers() if m.regex.fullmatch(name)), None)


def title(name: str) -> str:
    """What a chart of this metric is headed: the entry's title, with the variable parts of the name."""
    for matcher in _matchers():
        found = matcher.regex.fullmatch(name)
        if found:
            variable = " ".join(part.replace("_", " ") for part in found.groups())
            return f"{matcher.entry.title}: {variable}" if variable else matcher.entry.title
    return name


def is_healthy(entry: MetricHelp, value: float) -> bool:
    """Whether a value lies in the healthy range; an open side has no bound."""
    return (entry.low is None or value >= entry.low) and (entry.high is None or value <= entry.high)


def groups() -> tuple[str, ...]:
    """First parts of all names, in the table's order."""
    return tuple(dict.fromkeys(entry.pattern.split("/", 1)[0] for entry in ENTRIES))


def range_text(entry: MetricHelp) -> str:
    """The healthy range in words, empty when there is none."""
    if entry.high == 0 and entry.low is None:
        return "0"
    if entry.low is not None and entry.high is not None and 0 < entry.low < _SMALL:
        return f"above 0, at most {entry.high:g}"
    if entry.low is not None and entry.high is not None:
        return f"{entry.low:g} to {entry.high:g}"
    if entry.low is not None:
        return f"at least {entry.low:g}"
    return f"at most {entry.high:g}" if entry.high is not None else ""


_HEADER = """# Metrics

Every name a run may write to `metrics.jsonl`, Weights & Biases and the report. A healthy range is a place to start
looking, not a law: it is where runs of this kind usually are. `<x>` is any name. An entry of `null` in
`metrics.jsonl` is a number that was not finite; `ledger/non_finite_metrics` counts them.

Written from `records/glossary_table.py` by `python -m raylign.records.glossary docs/metrics.md`; edit it there.
"""


def markdown(entries: Sequence[MetricHelp] = ENTRIES) -> str:
    """The documentation page."""
    lines = [_HEADER]
    for group in dict.fromkeys(entry.pattern.split("/", 1)[0] for entry in entries):
        lines += [f"## {group}", "", "| name | what it is | unit | healthy | when it is not |", "|---|---|---|---|---|"]
        for entry in entries:
            if entry.pattern.split("/", 1)[0] == group:
                what = f"**{entry.title}.** {entry.meaning}"
                lines.append(f"| `{entry.pattern}` | {what} | {entry.unit} | {range_text(entry)} | {entry.action} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
