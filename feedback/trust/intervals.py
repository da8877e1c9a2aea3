"""Shares with intervals. A share without its interval is not shown anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the interval that holds the truth in 95 % of such logs; `count` is what it was made from."""

    value: float
    low: float
    high: float
    count: int

    def holds(self, truth: float) -> bool:
        """Whether the interval holds `truth`."""
        return self.low <= truth <= self.high


def z_of(confidence: float) -> float:
    """Half width, in standard errors, of a two-sided normal interval."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: float, total: int, *, confidence: float = CONFIDENCE) -> Estimate | None:
    """A share with its Wilson (1927) score interval, sound near 0 and 1 and for few counts; None for no counts."""
    if total <= 0:
        return None
    return _wilson(successes / total, float(total), z_of(confidence), total)


def _wilson(share: float, trials: float, z: float, count: int) -> Estimate:
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At shares of 0 and 1 the bound is exact; rounding must not put the share outside its own interval.
    low, high = max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))
    return Estimate(share, low, high, count)


def share_by_person(successes: Floats, totals: Floats) -> Estimate | None:
    """A share of choices whose people have habits; [people] each, one entry a person. None for no choices.

    Wilson's interval for the number of independent choices that vary as much: the choices over the design effect, which
    is the variance of the ratio over people (Kish, *Survey Sampling*, 1965) by the binomial one, at least 1. The
    quantile is Student's, with the people that count equally, (sum n)^2 / sum n^2, less one as degrees of freedom.
    """
    total = float(totals.sum())
    if not total:
        return None
    share = float(successes.sum()) / total
    people = int((totals > 0).sum())
    binomial = share * (1 - share) / total
    equal = total**2 / float((totals**2).sum())
    if people < 2 or not binomial:
        return _wilson(share, max(equal, 1.0), z_of(CONFIDENCE), int(total))
    between = float(((successes - share * totals) ** 2).sum()) * people / (people - 1) / total**2
    effect = max(1.0, between / binomial)
    return _wilson(share, total / effect, t_of(equal - 1), int(total))


def share_of_variance(share: Estimate, variance: float, people: float) -> Estimate:
    """Wilson's interval for as many independent choices as have the `variance` of `share`; Student's quantile.

    Where nothing varies the `people` are what is counted, so many that count equally, and no more than `share` counts.
    """
    if variance <= 0:
        return _wilson(share.value, max(1.0, min(people, share.count)), z_of(CONFIDENCE), share.count)
    return _wilson(share.value, share.value * (1 - share.value) / variance, t_of(people - 1), share.count)


def t_of(freedom: float) -> float:
    """Half width, in standard errors, of a two-sided interval by Student's distribution."""
    return float(stdtrit(max(1.0, freedom), 0.5 + CONFIDENCE / 2))


def shared_confidence(num_tests: int, *, confidence: float = CONFIDENCE) -> float:
    """Sidak (1967): the confidence each of `num_tests` tests needs so that all are right together with `confidence`."""
    return confidence ** (1 / max(1, num_tests))


def ratio(parts: Floats, wholes: Floats) -> Estimate | None:
    """Total of `parts` over total of `wholes`, [U] each, one entry an independent unit: the delta method's interval.

    None for no units. Where no unit differs from the ratio there is no spread to measure: Wilson's over units.
    """
    units = len(parts)
    if not units or not wholes.sum():
        return None
    value = float(parts.sum() / wholes.sum())
    residual = parts - value * wholes
    if not residual.any():
        return wilson(value * units, units)
    error = math.sqrt(float((residual**2).sum()) * units / max(1, units - 1)) / float(wholes.sum())
    half = z_of(CONFIDENCE) * error
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), units)
