"""What a suite says of one model, and of two models on the same prompts, with intervals.

A suite's prompts are its independent units; several answers to one prompt are averaged first. Every interval here is
for prompts drawn like these: it says nothing of another kind of prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from raylign.feedback.trust.intervals import wilson, z_of
from raylign.records.suite_changes import LEVEL
from scipy.optimize import brentq
from scipy.special import bdtr, betaincinv, stdtr, stdtrit

Floats = NDArray[np.float64]

FEW_CHANGES = 10
"""With fewer prompts that differ, Student's interval of a mean is not to be trusted: a rare change may be missing."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over `count` prompts. `low` and `high` are None where nothing is known of what was not seen."""

    value: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Line:
    """One suite of the table, or a slice of one."""

    suite: str
    unit: str
    failed: int
    found: Figure | None
    gain: Figure | None  # over the other model; None without one
    p: float | None  # corrected for the number of lines; None: nothing to compare with, or too few prompts to say
    part: str = ""  # a slice of the suite; "": all of it

    @property
    def worse(self) -> bool:
        """Surely, than the other model."""
        return self._sure and self.gain is not None and self.gain.value < 0

    @property
    def better(self) -> bool:
        """Surely, than the other model."""
        return self._sure and self.gain is not None and self.gain.value > 0

    @property
    def _sure(self) -> bool:
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True, slots=True)
class Range:
    """The lowest and the highest score that an answer can have."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """Of the range."""
        return self.high - self.low


def figure(scores: Floats, possible: Range | None, *, confidence: float) -> Figure | None:
    """Mean of `scores` [n], two-sided interval at `confidence`; None without a score.

    Zeros and ones alone: Wilson's (1927) interval. Else Student's; where all scores are equal, the share of prompts
    that may score otherwise (Clopper and Pearson, 1934) times what they may be away by, if `possible` is known.
    """
    n = len(scores)
    if not n:
        return None
    value = float(scores.mean())
    if _is_binary(scores):
        share = wilson(float(scores.sum()), n, confidence=confidence)
        assert share is not None
        return Figure(value, share.low, share.high, n)
    if np.ptp(scores) == 0.0:
        if possible is None:
            return Figure(value, None, None, n)
        unseen = _most(0, n, confidence)
        return Figure(value, value - unseen * (value - possible.low), value + unseen * (possible.high - value), n)
    low, high = _student(scores, confidence)
    return Figure(value, _at_least(low, possible), _at_most(high, possible), n)


def difference(candidate: Floats, current: Floats, possible: Range | None, *, confidence: float) -> Figure | None:
    """Mean of `candidate` - `current` over the same prompts, [n] each, two-sided interval at `confidence`.

    Zeros and ones alone: Tango's score interval for paired shares (Statistics in Medicine 17:891, 1998), which also
    holds where no prompt changed. Else Student's interval of the paired differences, and where fewer than
    FEW_CHANGES prompts differ, the share that may differ times the width of `possible`, or nothing when that is not
    known.
    """
    n = len(candidate)
    if n != len(current):
        raise ValueError(f"{n} scores against {len(current)}: the prompts are not the same")
    if not n:
        return None
    change = candidate - current
    value = float(change.mean())
    if _is_binary(candidate) and _is_binary(current):
        low, high = tango(int((change > 0).sum()), int((change < 0).sum()), n, confidence=confidence)
        return Figure(value, low, high, n)
    changed = int((change != 0).sum())
    if changed < FEW_CHANGES:
        if possible is None:
            return Figure(value, None, None, n)
        most = _most(changed, n, confidence) * possible.width
        return Figure(value, max(-most, -possible.width), min(most, possible.width), n)
    return Figure(value, *_student(change, confidence), n)


def tango(gained: int, lost: int, n: int, *, confidence: float) -> tuple[float, float]:
    """Score interval of (gained - lost) / n: prompts that only the candidate, or only the current model, got right."""
    z = z_of(confidence)
    value = (gained - lost) / n

    def statistic(delta: float) -> float:
        b = -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        root = math.sqrt(max(0.0, b * b - 8 * n * c))
        lost_share = (root - b) / (4 * n)  # most likely share of losses given delta
        variance = n * max(0.0, 2 * lost_share + delta * (1 - delta))
        distance = gained - lost - n * delta
        if variance == 0.0:
            return 0.0 if distance == 0 else math.copysign(math.inf, distance)
        return distance / math.sqrt(variance)

    low = _root(lambda delta: statistic(delta) - z, -1.0, value)
    high = _root(lambda delta: statistic(delta) + z, value, 1.0)
    return low, high


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that gains and losses are equally likely (McNemar, Psychometrika 12:153, 1947)."""
    changed = gained + lost
    return min(1.0, 2 * float(bdtr(min(gained, lost), changed, 0.5))) if changed else 1.0


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979), in the same order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def p_value(candidate: Floats, current: Floats) -> float:
    """Two-sided, that the two are equally good on prompts like these: McNemar's for zeros and ones, else Student's."""
    change = candidate - current
    if _is_binary(candidate) and _is_binary(current):
        return mcnemar(int((change > 0).sum()), int((change < 0).sum()))
    if len(change) < 2 or int((change != 0).sum()) < FEW_CHANGES:
        return 1.0
    return float(2 * stdtr(len(change) - 1, -abs(_standardised(change))))


def p_value_apart(part: Floats, rest: Floats) -> float:
    """Two-sided, that prompts of two kinds score alike: Fisher's exact for zeros and ones, else Welch's."""
    from scipy.stats import fisher_exact, ttest_ind  # a second to import, which every run would pay

    if min(len(part), len(rest)) < 2:
        return 1.0
    if _is_binary(part) and _is_binary(rest):
        return float(fisher_exact([[one.sum(), len(one) - one.sum()] for one in (part, rest)]).pvalue)
    if np.ptp(part) == np.ptp(rest) == 0.0:
        return 1.0  # scores that all are equal have no spread to be judged by
    return float(ttest_ind(part, rest, equal_var=False).pvalue)


def prompts_needed(spread: float, distance: float, *, confidence: float) -> int | None:
    """Prompts at which a one-sided interval decides, if value and spread stay; None: the value is on the line."""
    if distance == 0 or not spread:
        return None
    return math.ceil((z_of(2 * confidence - 1) * spread / abs(distance)) ** 2)


def _is_binary(scores: Floats) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _student(values: Floats, confidence: float) -> tuple[float, float]:
    half = float(stdtrit(len(values) - 1, 0.5 + confidence / 2)) * _error(values)
    return float(values.mean()) - half, float(values.mean()) + half


def _standardised(values: Floats) -> float:
    return float(values.mean()) / _error(values)


def _error(values: Floats) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _most(seen: int, n: int, confidence: float) -> float:
    """Upper bound of a share of which `seen` of `n` were seen."""
    return 1.0 if seen >= n else float(betaincinv(seen + 1, n - seen, 0.5 + confidence / 2))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where the falling `function` crosses zero between the bounds; a bound where it does not."""
    at_low, at_high = function(low + 1e-12), function(high - 1e-12)
    if at_low <= 0:
        return low
    if at_high >= 0:
        return high
    return float(brentq(function, low + 1e-12, high - 1e-12, xtol=1e-10))


def _at_least(value: float, possible: Range | None) -> float:
    return value if possible is None else max(value, possible.low)


def _at_most(value: float, possible: Range | None) -> float:
    return value if possible is None else min(value, possible.high)
