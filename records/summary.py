"""summary.json: the figures a reader asks for first, one flat object, units in the key names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from raylign.records.atomic import write_atomic

_EXTRA_NAME = re.compile(r"[a-z][a-z0-9_]*")
_EXTRA_FIELD = "extra"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run came to. A figure that does not apply is None and left out of the file.

    Scores are means over the held-out prompts; `fluency_*` is the mean log-prob a token (end token left out) of the
    answers under the untouched start model, nats; `kl_final` is nats a sequence, policy to reference.
    """

    algorithm: str
    policy_start: str  # what was trained from: folder or name
    steps: int
    seconds_total: float
    preference_vs_start: float | None = None  # share of comparisons the trained model wins, ties half
    preference_low: float | None = None  # 95 % interval of that share
    preference_high: float | None = None
    preference_comparisons: int | None = None
    gold_score_before: float | None = None
    gold_score_after: float | None = None
    reward_before: float | None = None
    reward_after: float | None = None
    kl_final: float | None = None
    fluency_before: float | None = None
    fluency_after: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)  # further figures, e.g. "answer_tokens_after"


def write_summary(path: Path, summary: RunSummary) -> None:
    """Write one flat object. Raises ValueError when an extra figure has a bad name or one that is taken."""
    taken = {f.name for f in fields(summary)}
    wrong = [name for name in summary.extra if name in taken or not _EXTRA_NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"extra summary figures need new names of a-z 0-9 _, got {', '.join(wrong)}")
    own = {f.name: getattr(summary, f.name) for f in fields(summary) if f.name != _EXTRA_FIELD}
    figures = {name: _json_value(value) for name, value in {**own, **summary.extra}.items() if value is not None}
    write_atomic(path, json.dumps(figures, indent=2, allow_nan=False) + "\n")


def read_summary(path: Path) -> RunSummary:
    """Read summary.json back; unknown keys are extra figures, null is a figure that was not finite."""
    found = json.loads(path.read_text(encoding="utf-8"))
    known = {f.name for f in fields(RunSummary)} - {_EXTRA_FIELD}
    extra = {k: math.nan if v is None else v for k, v in found.items() if k not in known}
    return RunSummary(**{k: v for k, v in found.items() if k in known}, extra=extra)


def _json_value(value: str | float) -> str | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
