"""Intervals of shares hold the truth when people have habits: a simulation with its own draws, not the code's."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from raylign.feedback.trust.intervals import share_by_person, wilson
from raylign.feedback.trust.judgements import JUDGEMENT_SCHEMA
from raylign.feedback.trust.length import length_bias
from raylign.feedback.trust.position import position_bias

SEEDS = 40
LOGS = 50  # a seed: the share of 2,000 logs tells 0.95 to within 0.01


def log(
    rng: np.random.Generator, people: int, choices: int, habit: float, mean: float
) -> tuple[np.ndarray, np.ndarray]:
    """How often each of `people` took the left, out of how many; each has a habit, Beta with this mean and spread."""
    totals = 1 + rng.poisson(rng.gamma(2.0, choices / 2, people))
    if habit == 0:
        return rng.binomial(totals, mean).astype(float), totals.astype(float)
    strength = 1 / habit - 1
    leaning = rng.beta(mean * strength, (1 - mean) * strength, people)
    return rng.binomial(totals, leaning).astype(float), totals.astype(float)


@pytest.mark.parametrize(
    ("people", "choices", "habit", "mean"),
    [(30, 20, 0.2, 0.5), (100, 30, 0.1, 0.6), (300, 8, 0.3, 0.5), (60, 50, 0.05, 0.55), (200, 10, 0.0, 0.5)],
)
def test_the_interval_of_a_share_holds_the_truth_as_often_as_it_says(people, choices, habit, mean):
    held = naive = 0
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        for _ in range(LOGS):
            taken, totals = log(rng, people, choices, habit, mean)
            by_person, by_choice = share_by_person(taken, totals), wilson(taken.sum(), int(totals.sum()))
            assert by_person is not None and by_choice is not None
            held += by_person.holds(mean)
            naive += by_choice.holds(mean)
    coverage = held / SEEDS / LOGS
    assert 0.93 <= coverage <= 0.97, coverage
    if habit:
        assert naive / SEEDS / LOGS < 0.91  # what counting choices as independent would give


def test_statistics_count_people_and_not_choices():
    rows = []
    for person, left in (("ann", 50), ("bob", 0)):
        for n in range(50):
            rows.append({"rater": person, "picked_left": n < left, "score_a": 1.0, "a_left": True, "model_a": "m",
                         "model_b": "m", "length_a": 20 if n < left else 10, "length_b": 15})  # fmt: skip
    judged = pl.DataFrame([{name: row.get(name) for name in JUDGEMENT_SCHEMA} for row in rows], schema=JUDGEMENT_SCHEMA)
    left, longer = position_bias(judged).left, length_bias(judged).longer
    assert left is not None and longer is not None
    assert left.value == longer.value == 0.5 and left.count == 100
    assert left.low < 0.05 and left.high > 0.95 and longer.low < 0.05  # two people are two, however often they chose


def test_edges():
    assert share_by_person(np.array([]), np.array([])) is None
    one = share_by_person(np.array([9.0]), np.array([10.0]))
    assert one is not None and one.high - one.low > 0.5  # of one person nothing is known about others
    sure = share_by_person(np.array([5.0] * 40), np.array([5.0] * 40))
    assert sure is not None and sure.high == 1.0 and 0.85 < sure.low < 1.0
