"""What the run checked about itself, each as found in its numbers.

A check of online training that left none is listed as not recorded; of a run without engines it is not listed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.conf.schema import GuardConfig
from raylign.pages.numbers import short
from raylign.records.alerts import GUARDED, Alert, AlertKind, watched
from raylign.records.glossary import describe
from raylign.records.ledger_check import check_ledger
from raylign.records.metrics_log import MetricHistory
from raylign.records.report.tone import Tone

_ZERO_KL = 1e-3  # nats a sequence; exactly 0 in float32
_ERRORS = 4.0
"""Standard errors that a mean of rounding errors may be from 0."""
_ROUNDING = 0.05
"""Nats a token, root mean square, between two right passes in bfloat16; 0.03 was measured with SmolLM2-135M."""
_NOISE_FACTOR = 3.0
"""As trainer/loops/canary_limit.py: what differs at the first step is noise, for the weights were found equal."""
_GAP_CEILING = 1.0
"""Nats a token, mean: two programs that differ by more at the first step do not compute the same model."""
_SIZES = ("ledger/trained", "rollout/response_length")  # of a first step: sequences, and tokens of each
_ONLINE = ("reward/", "rollout/", "sync/")  # groups that only a run with engines has


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the list; `result` is short enough for a table cell."""

    name: str
    result: str
    tone: Tone
    meaning: str


def checks(history: MetricHistory) -> tuple[Check, ...]:
    """Everything the metrics tell about correctness, in a fixed order."""
    found = [_counted(history, "ledger/non_finite_metrics", "Numbers that were not finite"), _complete(history)]
    if any(name.startswith(_ONLINE) for name in history.names()):
        found[:0] = [
            _verified(history),
            _limited(history, "sync/canary_gap", "Canary gap, largest", "nats"),
            _gap(history),
            _first_kl(history),
            _masks(history),
            _counted(history, "reward/failed", "Rewards that failed"),
        ]
    return (*found, *_ledger(history))


def ledger_checks(folder: Path) -> list[Check]:
    """What the run's ledger says when it is held against metrics and samples; nothing for a run without one."""
    report = check_ledger(folder)
    if report is None:
        return []
    meaning = "Every (epoch, prompt, k) ended once, as trained, filtered or failed; metrics and samples say the same."
    if report.problems:
        return [Check("Ledger", f"{len(report.problems)} problems; first: {report.problems[0]}", Tone.WARNING, meaning)]
    again = f", {report.done_again} steps done again after a crash" if report.done_again else ""
    return [Check("Ledger", f"{report.samples:,} samples, each ended once{again}", Tone.GOOD, meaning)]


def guard_checks(history: MetricHistory, guard: GuardConfig, alerts: Sequence[Alert]) -> list[Check]:
    """Which signs that the policy goes wrong were watched, and how many were seen; nothing for an offline run.

    A sign that was seen is told as an alert, so it is no second warning here.
    """
    if not any(name.startswith(_ONLINE) for name in history.names()):
        return []
    steps = sum(row.step > 0 for row in history.rows)
    kinds = watched(guard, steps)
    seen = sum(alert.kind in GUARDED for alert in alerts)
    limit = f" (above {guard.kl_limit:g} nats a sequence)" if guard.kl_limit else ""
    named = [f"{k.value}{limit if k is AlertKind.KL_RUNAWAY else ''}" for k in kinds]
    meaning = f"Looked for after every step: {', '.join(named)}." if named else "The run had too few steps for any."
    return [Check("Signs that the policy goes wrong", f"{seen or 'none'} of {len(kinds)} seen",
                  Tone.GOOD if kinds and not seen else Tone.PLAIN, meaning)]  # fmt: skip


def _values(history: MetricHistory, name: str) -> list[float]:
    return [value for _, value in history.series(name) if value is not None]


def _not_recorded(name: str, meaning: str) -> Check:
    return Check(name, "not recorded", Tone.PLAIN, meaning)


def _meaning(name: str) -> str:
    entry = describe(name)
    return entry.meaning if entry else ""


def _verified(history: MetricHistory) -> Check:
    meaning = "Served weights compared with the learner's, tensor by tensor, after every publication."
    counts = _values(history, "sync/verified")
    if not counts:
        return _not_recorded("Weights verified", meaning)
    tone = Tone.GOOD if min(counts) >= 1 else Tone.WARNING
    return Check("Weights verified", f"{sum(counts):,.0f} times in {len(counts):,} publications", tone, meaning)


def _limited(history: MetricHistory, name: str, label: str, unit: str) -> Check:
    values, entry = _values(history, name), describe(name)
    if not values or entry is None:
        return _not_recorded(label, _meaning(name))
    worst = max(values)
    tone = Tone.GOOD if entry.high is None or worst <= entry.high else Tone.WARNING
    return Check(label, f"{short(worst)} {unit}", tone, entry.meaning)


def _gap(history: MetricHistory) -> Check:
    """Two programs never agree to the last bit over a whole run: all 0 says that the trainer computed none.

    How far apart they are with the same weights, which were compared, is measured by the first step; later ones are
    held to that where it is more than the usual range.
    """
    name, label = "rollout/logprob_gap_max", "Engine against trainer, largest"
    entry, values, means = describe(name), _values(history, name), _values(history, "rollout/logprob_gap")
    if not any(values) or entry is None:
        return _not_recorded(label, _meaning(name))
    limit = max(entry.high or 0.0, _NOISE_FACTOR * values[0])
    good = max(values) <= limit and all(mean <= _GAP_CEILING for mean in means[:1])
    return Check(label, f"{short(max(values))} nats", Tone.GOOD if good else Tone.WARNING, entry.meaning)


def _first_kl(history: MetricHistory) -> Check:
    meaning = "Before the first update the policy is the reference: their distance is 0, but for what a format rounds."
    series = [(step, value) for step, value in history.series("policy/kl") if value is not None]
    if not series or series[0][0] > 1:
        return _not_recorded("KL before the first update", meaning)
    step, value = series[0]
    good = abs(value) <= _ZERO_KL or _is_rounding(history, step, value)
    return Check(
        "KL before the first update", f"{short(value)} nats a sequence", Tone.GOOD if good else Tone.WARNING, meaning
    )


def _is_rounding(history: MetricHistory, step: int, kl: float) -> bool:
    """Whether a mean over the step's sequences is what independent small errors of their tokens give.

    Their square says how large the errors are: no larger a token than rounding, and a mean within its standard error.
    """
    at = {name: dict(history.series(name)).get(step) for name in ("policy/kl_square", *_SIZES)}
    square, sequences, tokens = (at[name] for name in ("policy/kl_square", *_SIZES))
    if not square or not sequences or not tokens:
        return False
    error = math.sqrt(max(0.0, square - kl**2) / sequences)
    return abs(kl) <= _ERRORS * error and square / tokens <= _ROUNDING**2


def _masks(history: MetricHistory) -> Check:
    values = _values(history, "data/masks_checked")
    if not values:
        return _not_recorded("Training masks checked", _meaning("data/masks_checked"))
    return Check("Training masks checked", f"{values[-1]:,.0f} sequences", Tone.GOOD, _meaning("data/masks_checked"))


def _counted(history: MetricHistory, name: str, label: str) -> Check:
    """A count a step that should be 0; the metric for numbers that were not finite exists only when there were some."""
    total = sum(_values(history, name))
    if not total:
        recorded = name in history.names() or name.startswith("ledger/")
        return Check(label, "none", Tone.GOOD, _meaning(name)) if recorded else _not_recorded(label, _meaning(name))
    return Check(label, f"{total:,.0f}", Tone.WARNING, _meaning(name))


def _complete(history: MetricHistory) -> Check:
    steps = [row.step for row in history.rows]
    absent = steps[-1] - max(steps[0], 1) + 1 - sum(step >= 1 for step in steps)
    torn = f", {history.unreadable_lines} unreadable lines" if history.unreadable_lines else ""
    meaning = "Every step from the first to the last has its line in metrics.jsonl."
    if absent or torn:
        return Check("Steps without numbers", f"{absent:,}{torn}", Tone.WARNING, meaning)
    return Check("Steps without numbers", "none", Tone.GOOD, meaning)


def _ledger(history: MetricHistory) -> list[Check]:
    lines = []
    for name in history.names():
        values = _values(history, name)
        if name.startswith("ledger/") and name != "ledger/non_finite_metrics" and values:
            label = f"Samples {name.split('/', 1)[1].replace('_', ' ')}"
            lines.append(Check(label, f"{values[-1]:,.0f}", Tone.PLAIN, "Counted once each, by sample key."))
    return lines
