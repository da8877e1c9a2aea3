"""From components to the score that is trained on: weighted sum, running normalisation, penalty, clip. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from raylign.data.types import Reward, RewardFailure, RewardOutcome
from raylign.reward.interfaces import ShapingState, WeightedComponent

EMPTY_STATE = ShapingState(count=0.0, mean=0.0, m2=0.0)
_MIN_STD = 1e-6  # a constant reward carries no preference; dividing by less would invent one from rounding


@dataclass(frozen=True, slots=True)
class Shaping:
    """What is done to the weighted sum, in this order: normalise, penalise, clip."""

    normalize: bool
    truncation_penalty: float  # >= 0, subtracted from responses cut by length
    clip: float  # final score to +-clip; 0: off
    overlong: Overlong | None = None


@dataclass(frozen=True, slots=True)
class Overlong:
    """A penalty that grows linearly over the last `window` tokens before the limit (DAPO, arXiv:2503.14476, eq. 13)."""

    limit: int  # longest response, tokens
    window: int  # tokens
    penalty: float  # at the limit

    def of(self, length: int) -> float:
        """What a response of `length` tokens loses, between 0 and `penalty`."""
        over = (length - (self.limit - self.window)) / self.window
        return self.penalty * min(max(over, 0.0), 1.0)


class Response(NamedTuple):
    """What shaping looks at of an answer."""

    length: int  # tokens
    truncated: bool


def weighted_sum(components: Mapping[str, float], weights: Sequence[WeightedComponent]) -> float:
    """Sum of weight times component. Raises KeyError when a weighted component is missing."""
    return math.fsum(w.weight * components[w.name] for w in weights)


def observe(state: ShapingState, scores: Sequence[float]) -> ShapingState:
    """The statistics after `scores`, none of them NaN."""
    if not scores:
        return state
    mean = math.fsum(scores) / len(scores)
    m2 = math.fsum((x - mean) ** 2 for x in scores)
    return merge(state, ShapingState(count=float(len(scores)), mean=mean, m2=m2))


def merge(a: ShapingState, b: ShapingState) -> ShapingState:
    """Statistics of two disjoint sets of scores together (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    count = a.count + b.count
    if count == 0:
        return a
    delta = b.mean - a.mean
    return ShapingState(
        count=count,
        mean=a.mean + delta * b.count / count,
        m2=a.m2 + b.m2 + delta * delta * a.count * b.count / count,
    )


def standard_deviation(state: ShapingState) -> float:
    """Of everything observed; 0 before the first score."""
    return math.sqrt(state.m2 / state.count) if state.count else 0.0


def shape(
    outcomes: Sequence[RewardOutcome], responses: Sequence[Response], shaping: Shaping, state: ShapingState
) -> tuple[list[RewardOutcome], ShapingState]:
    """Shape a step's outcomes. The step's own scores enter the running statistics first.

    `responses`: one an outcome. Failures pass through and enter no statistic.
    """
    scored = [o.score for o in outcomes if isinstance(o, Reward)]
    state = observe(state, scored) if shaping.normalize else state
    scale = max(standard_deviation(state), _MIN_STD)

    def final(score: float, response: Response) -> float:
        score = (score - state.mean) / scale if shaping.normalize else score
        score -= shaping.truncation_penalty if response.truncated else 0.0
        score -= shaping.overlong.of(response.length) if shaping.overlong else 0.0
        return min(max(score, -shaping.clip), shaping.clip) if shaping.clip > 0 else score

    def steps(outcome: Reward) -> tuple[tuple[int, float], ...]:
        """In the units of the score; what shifts, penalises and clips a score is of its end."""
        return tuple((t, value / scale) for t, value in outcome.steps) if shaping.normalize else outcome.steps

    shaped = [
        outcome
        if isinstance(outcome, RewardFailure)
        else replace(outcome, score=final(outcome.score, response), steps=steps(outcome))
        for outcome, response in zip(outcomes, responses, strict=True)
    ]
    return shaped, state
