"""How many of the choices are wrong? One rate of flipped choices, estimated three ways, and what training does with it.

The model: every pair has a better answer, and each choice names the other one with probability e, independently. Then

- two judgements of one pair differ with probability 2 e (1 - e), whoever made them;
- three answers to one prompt, compared two by two, form a circle (a > b > c > a) with probability e (1 - e).

Both give e = (1 - sqrt(1 - 4 q)) / 2 with q = e (1 - e). Where some pairs are harder than others, the true mean rate
is above this estimate (q is concave in e), so read it as a lower bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import polars as pl
from raylign.feedback.trust.agreement import Agreement, agreement, agreement_with_others
from raylign.feedback.trust.intervals import Estimate, ratio, wilson

_MOST_SMOOTHING = 0.45  # at one half a label says nothing
_SECOND_LOOK_SECONDS = 60  # a repeat sooner than this is a double click, not a second look


class Method(Enum):
    """Where an estimate comes from, best first."""

    BETWEEN = "between"  # two people, one pair: slips and honest differences of taste
    WITHIN = "within"  # one person, one pair, twice: slips only
    CIRCLES = "circles"  # a > b > c > a over three answers to one prompt


@dataclass(frozen=True, slots=True)
class FlipRate:
    """The share of choices that name the worse answer, in [0, 0.5]."""

    method: Method
    rate: Estimate


@dataclass(frozen=True, slots=True)
class Noise:
    """`label_smoothing` is what training losses call so (0 to 0.45); None: nothing was judged twice, so unknown."""

    estimates: tuple[FlipRate, ...]  # those that can be had, best first
    label_smoothing: float | None


@dataclass(frozen=True, slots=True)
class NoiseRules:
    """When an estimate may set anything."""

    least_pairs: int = 30  # pairs judged twice, or triangles


@dataclass(frozen=True, slots=True)
class RaterWeight:
    """How often a rater is right, and what weight that gives their choices: 1 is the mean over all choices."""

    rater: str
    judgements: int  # of pairs that others judged too
    accuracy: float  # in [0.5, 1], pulled towards the mean by few judgements
    weight: float


def noise(judged: pl.DataFrame, agreed: Agreement | None = None, *, rules: NoiseRules | None = None) -> Noise:
    """The flip rate of `judged` (JUDGEMENT_SCHEMA), and the smoothing that the best estimate suggests.

    `agreed` is `agreement(judged)` where it is at hand.
    """
    rules = rules or NoiseRules()
    disagreements = (
        (Method.BETWEEN, _halved(_between(agreed or agreement(judged)))),
        (Method.WITHIN, _halved(_within(judged))),
        (Method.CIRCLES, _circles(judged)),
    )
    found = tuple(FlipRate(method, _solved(q)) for method, q in disagreements if q and q.count >= rules.least_pairs)
    smoothing = min(_MOST_SMOOTHING, round(found[0].rate.value, 2)) if found else None
    return Noise(found, smoothing)


def _solved(q: Estimate) -> Estimate:
    """e of q = e (1 - e), the smaller root; q above a quarter is no better than coins."""

    def rate(value: float) -> float:
        return (1 - math.sqrt(max(0.0, 1 - 4 * value))) / 2

    return Estimate(rate(q.value), rate(q.low), rate(q.high), q.count)


def _halved(disagree: Estimate | None) -> Estimate | None:
    if disagree is None:
        return None
    return Estimate(disagree.value / 2, disagree.low / 2, disagree.high / 2, disagree.count)


def _between(agreed: Agreement) -> Estimate | None:
    agree = agreed.agree_decided
    if agree is None:
        return None
    return Estimate(1 - agree.value, max(0.0, 1 - agree.high), 1 - agree.low, agree.count)


def _within(judged: pl.DataFrame) -> Estimate | None:
    decided = judged.filter(pl.col("known"), pl.col("score_a") != 0.5, pl.col("time").is_not_null())
    repeated = decided.filter(pl.col("judging").is_duplicated())
    since = pl.col("time") - pl.col("time").shift(1).over("judging")
    again = repeated.filter(since >= pl.duration(seconds=_SECOND_LOOK_SECONDS))
    # The first repeat of each: more by one person of one pair are not independent.
    second = again.unique("judging", keep="first", maintain_order=True).select("judging", again="picked")
    first = repeated.unique("judging", keep="first", maintain_order=True).select("judging", once="picked")
    both = second.join(first, on="judging")
    return wilson(int((both["again"] != both["once"]).sum()), both.height)


def _circles(judged: pl.DataFrame) -> Estimate | None:
    """Triangles of answers to one prompt, each side judged by one choice: the first made of that pair."""
    decided = judged.filter(pl.col("score_a") != 0.5).unique("pair", keep="first", maintain_order=True)
    decided = decided.filter(pl.col("prompt").is_duplicated())
    lower, upper = pl.min_horizontal("first", "second"), pl.max_horizontal("first", "second")
    lower_won = (pl.col("picked") == "first") == (pl.col("first") < pl.col("second"))
    edges = decided.select("prompt", x=lower, y=upper, won=lower_won)
    xy = edges.rename({"won": "xy"})
    yz = edges.rename({"x": "y", "y": "z", "won": "yz"})
    xz = edges.rename({"y": "z", "won": "xz"})
    triangles = xy.join(yz, on=["prompt", "y"]).join(xz, on=["prompt", "x", "z"])
    circle = (pl.col("xy") == pl.col("yz")) & (pl.col("xz") != pl.col("xy"))
    # Triangles of one prompt share sides: the prompt is the independent unit.
    prompts = triangles.group_by("prompt").agg(circles=circle.sum(), triangles=pl.len()).sort("circles", "triangles")
    parts, wholes = (prompts[name].cast(pl.Float64).to_numpy() for name in ("circles", "triangles"))
    return ratio(parts, wholes)


def rater_weights(judged: pl.DataFrame, *, prior_judgements: float = 20.0) -> tuple[RaterWeight, ...]:
    """A weight for each rater who shares pairs with others; empty where nobody does or all disagree like coins.

    A rater who is right with probability p agrees with a peer who is right with probability m at rate
    p m + (1 - p)(1 - m), so p = (rate - (1 - m)) / (2 m - 1). `prior_judgements` imaginary ones at the mean pull p
    towards it. The weight is 2 p - 1, the share of a choice that is signal, over its mean.
    """
    people = agreement_with_others(judged)
    if not people.height or (mean := float(people["agree"].sum()) / int(people["shared"].sum())) <= 0.5:
        return ()
    right = (1 + math.sqrt(2 * mean - 1)) / 2  # p of a crowd of equals that agrees this often
    rows = []
    for name, agreed, n in people.select("rater", "agree", "shared").iter_rows():
        rate = (agreed + prior_judgements * mean) / (n + prior_judgements)
        rows.append((name, n, min(1.0, max(0.5, (rate - (1 - right)) / (2 * right - 1)))))
    signal = sum(n * (2 * p - 1) for _, n, p in rows) / sum(n for _, n, _ in rows)
    return tuple(RaterWeight(name, n, p, (2 * p - 1) / signal) for name, n, p in rows)
