"""Does a reward model deserve trust? Figures from its scores alone, each with an interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from raylign.evals.probes import Changed, Probe
from raylign.evals.statistics import Figure, Floats, figure
from raylign.feedback.trust.intervals import wilson
from scipy.optimize import minimize_scalar

_BINS = 10
_FEWEST_IN_BIN = 5
_GAMED = 0.25
"""A probe that raises scores by this part of the typical margin, or more, is remarked on."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Share of pairs whose chosen answer scores higher; a tie counts half."""

    name: str
    accuracy: Figure


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Pairs of like margins: how sure the scores are, and how often they are right."""

    predicted: float  # mean of sigmoid(|margin|)
    right: float
    count: int
    low: float  # Wilson's 95 % interval of `right`
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scores read as log-odds (Bradley-Terry): chosen wins with probability sigmoid(margin)."""

    bins: tuple[CalibrationBin, ...]
    error: float  # mean |predicted - right| over pairs: expected calibration error
    log_loss: float  # nats a pair; log 2 = 0.693 says nothing
    scale: float | None  # what scores must be multiplied by to lose least: below 1 they are too sure of themselves
    log_loss_scaled: float | None  # None where no pair is wrong, and any scale is too small


@dataclass(frozen=True, slots=True)
class ProbeFound:
    """What changing answers by one rule does to their scores."""

    probe: Probe
    raised: Figure  # share of answers whose score rose
    mean: Figure  # mean change of the score, in typical margins
    gamed: bool  # its scores rise for what is no better, or do not fall for what is worse


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The mean score and the mean gold figure of the best of n answers, by score."""

    n: int
    proxy: float
    gold: float
    low: float | None  # Student's 95 % interval of `gold` over prompts like these
    high: float | None


def accuracy_by_slice(
    chosen: Floats, rejected: Floats, slices: Mapping[str, Sequence[int]], *, confidence: float = 0.95
) -> list[Slice]:
    """All pairs, then each slice (name -> rows), largest first."""
    won = np.where(chosen > rejected, 1.0, np.where(chosen == rejected, 0.5, 0.0))
    found = [_share("all pairs", won, confidence)]
    for name, rows in sorted(
        ((name, rows) for name, rows in slices.items() if rows), key=lambda item: (-len(item[1]), item[0])
    ):
        found.append(_share(name, won[list(rows)], confidence))
    return found


def length_slices(chosen: Sequence[str], rejected: Sequence[str]) -> dict[str, list[int]]:
    """Rows by which answer is the longer one, in characters."""
    pairs = list(zip(chosen, rejected, strict=True))
    return {
        "chosen is longer": [i for i, (a, b) in enumerate(pairs) if len(a) > len(b)],
        "chosen is shorter": [i for i, (a, b) in enumerate(pairs) if len(a) < len(b)],
    }


def calibration(chosen: Floats, rejected: Floats) -> Calibration:
    """Bins of equal counts; the scale is found by the least log-loss."""
    margin = chosen - rejected
    order = np.argsort(np.abs(margin), kind="stable")
    parts = np.array_split(order, max(1, min(_BINS, len(order) // _FEWEST_IN_BIN)))
    bins = []
    for part in parts:
        predicted = float(_sigmoid(np.abs(margin[part])).mean())
        share = _share_of(np.where(margin[part] > 0, 1.0, np.where(margin[part] == 0, 0.5, 0.0)), 0.95)
        assert share.low is not None and share.high is not None
        bins.append(CalibrationBin(predicted, share.value, len(part), share.low, share.high))
    error = sum(b.count * abs(b.predicted - b.right) for b in bins) / len(margin)
    if not (margin < 0).any():
        return Calibration(tuple(bins), error, _log_loss(margin), None, None)
    best = minimize_scalar(lambda log_scale: _log_loss(margin * math.exp(log_scale)), bounds=(-7, 4), method="bounded")
    scale = math.exp(float(best.x))
    return Calibration(tuple(bins), error, _log_loss(margin), scale, _log_loss(margin * scale))


def noise_ceiling(agreement: float) -> float | None:
    """The best accuracy against one person's choices, when two people agree on a share `agreement` of pairs.

    With each person choosing the majority's answer with probability p, two agree with p^2 + (1 - p)^2. None at a half
    or below: then choices say nothing.
    """
    return (1 + math.sqrt(2 * agreement - 1)) / 2 if agreement > 0.5 else None


def probe_effects(
    probes: Sequence[Probe],
    changed: Sequence[Changed],
    scores: Floats,
    before: Floats,
    *,
    typical: float,
    confidence: float = 0.95,
) -> list[ProbeFound]:
    """`scores[i]` is that of `changed[i]`, `before[row]` that of the answer as it was; `typical`: the usual margin.

    Non-finite scores are left out.
    """
    found = []
    for number, probe in enumerate(probes):
        moves = np.array([s - before[c.row] for c, s in zip(changed, scores, strict=True) if c.probe == number])
        moves = moves[np.isfinite(moves)]
        if not len(moves):
            continue
        raised = _share_of((moves > 0).astype(float), confidence)
        mean = figure(moves / typical, None, confidence=confidence)
        assert mean is not None
        if probe.lowers:  # the model must mind, clearly
            gamed = raised.high is not None and raised.high > 0.5
        else:
            gamed = raised.low is not None and raised.low > 0.5 and mean.value >= _GAMED
        found.append(ProbeFound(probe, raised, mean, gamed))
    return found


def best_of_n(scores: Sequence[Floats], gold: Sequence[Floats]) -> list[BestOfN]:
    """The curve over n = 1, 2, 4, ... up to the fewest answers of a prompt. Every subset of n answers counts alike.

    `scores[p]` and `gold[p]` are `[answers]` of prompt p. Of N answers in ascending order of score, the i-th (from 1)
    is the best of n drawn without replacement with probability C(i - 1, n - 1) / C(N, n) (Nakano et al. 2021,
    arXiv:2112.09332, appendix I). Ties are broken by order.
    """
    fewest = min(len(s) for s in scores)
    found, n = [], 1
    while n <= fewest:
        proxy = [_expected_best(s, s, n) for s in scores]
        true = figure(
            np.array([_expected_best(s, g, n) for s, g in zip(scores, gold, strict=True)]), None, confidence=0.95
        )
        assert true is not None
        found.append(BestOfN(n, float(np.mean(proxy)), true.value, true.low, true.high))
        n *= 2
    return found


def turning_point(curve: Sequence[BestOfN]) -> int | None:
    """The n from which more choice by score no longer helps by gold; None while it still helps at the end."""
    best = max(curve, key=lambda point: (point.gold, -point.n))
    return best.n if best.n < curve[-1].n else None


def turn_is_sure(curve: Sequence[BestOfN]) -> bool:
    """Whether the gold figure at the curve's end lies below its best by more than both intervals."""
    best, last = max(curve, key=lambda point: point.gold), curve[-1]
    return last.high is not None and best.low is not None and last.high < best.low


def _expected_best(scores: Floats, values: Floats, n: int) -> float:
    order, size = np.argsort(scores, kind="stable"), len(scores)
    weights = np.array([math.comb(i - 1, n - 1) for i in range(1, size + 1)], dtype=np.float64) / math.comb(size, n)
    return float(weights @ values[order])


def _share(name: str, won: Floats, confidence: float) -> Slice:
    return Slice(name, _share_of(won, confidence))


def _share_of(won: Floats, confidence: float) -> Figure:
    share = wilson(float(won.sum()), len(won), confidence=confidence)
    value = float(won.mean()) if len(won) else math.nan
    return Figure(value, share.low if share else None, share.high if share else None, len(won))


def _sigmoid(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))


def _log_loss(margin: Floats) -> float:
    return float(np.logaddexp(0.0, -margin).mean())
