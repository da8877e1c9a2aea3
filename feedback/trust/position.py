"""Does the place on the screen decide? The share of choices for the left answer, and who stood where."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
from raylign.feedback.trust.intervals import Estimate, share_by_person, shared_confidence, wilson
from raylign.feedback.trust.judgements import by_person

_MUCH = 0.05  # from one half; less moves the share of the left by less than its interval in all but very large logs


@dataclass(frozen=True, slots=True)
class Placement:
    """How often a model's answer stood on the left, against the other model's."""

    model: str
    left: Estimate  # interval wide enough that all models' hold together
    uneven: bool  # the interval leaves out one half

    @property
    def lopsided(self) -> bool:
        """Uneven by as much as matters: _MUCH or more."""
        return self.uneven and abs(self.left.value - 0.5) >= _MUCH


@dataclass(frozen=True, slots=True)
class PositionBias:
    """Over choices of one side where the sides were logged. Only a coin that decides sides makes `left` a bias."""

    left: Estimate | None  # P(left answer chosen); None: sides were not logged
    unlogged: int  # choices of one side without a logged place
    placements: tuple[Placement, ...]

    @property
    def biased(self) -> bool:
        """Whether one half lies outside the interval."""
        return self.left is not None and not self.left.holds(0.5)


def position_bias(judged: pl.DataFrame) -> PositionBias:
    """Position bias over all of `judged` (JUDGEMENT_SCHEMA); annotators one by one are in `annotators`."""
    decided = judged.filter(pl.col("score_a") != 0.5)
    known = decided.filter(pl.col("picked_left").is_not_null())
    return PositionBias(
        left=share_by_person(*by_person(known, "picked_left")),
        unlogged=len(decided) - len(known),
        placements=_placements(judged),
    )


def _placements(judged: pl.DataFrame) -> tuple[Placement, ...]:
    """Only comparisons of two different models say anything about where a model stands."""
    known = judged.filter(pl.col("a_left").is_not_null(), pl.col("model_a") != pl.col("model_b"))
    sides = pl.concat(
        [
            known.select(model="model_a", left="a_left"),
            known.select(model="model_b", left=~pl.col("a_left")),
        ]
    )
    counts = sides.group_by("model").agg(left=pl.col("left").sum(), n=pl.len()).sort("model")
    confidence = shared_confidence(counts.height)
    result = []
    for model, left, n in counts.iter_rows():
        share = wilson(left, n, confidence=confidence)
        assert share is not None
        result.append(Placement(model, share, not share.holds(0.5)))
    return tuple(result)
