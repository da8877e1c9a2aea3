"""Intervals of agreement hold the truth when people have habits; the variance equals the sum over all duos."""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from raylign.feedback.trust.agreement import (
    agree_by_person,
    agreement,
    alpha_by_person,
    alpha_nominal,
    percent_agreement,
)
from raylign.feedback.trust.crossed import Crossed
from raylign.feedback.trust.judgements import JUDGEMENT_SCHEMA

SEEDS = 40
FEW, MANY = 4, 50  # logs a seed: 160 tell 0.95 to within 0.035, 2,000 to within 0.01


def log(rng: np.random.Generator, people: int, pairs: int, each: int, kind: str) -> Crossed:
    """`pairs` judged by `each` of `people`; a person names the better answer as often as their habit says."""
    right = {
        "alike": np.full(people, 0.85),
        "uneven": 0.5 + 0.5 * rng.beta(4, 2, people),
        "careless": np.where(rng.random(people) < 0.2, 0.5, 0.9),
        "contrary": np.where(rng.random(people) < 0.15, 0.15, 0.9),
        "hard": 0.6 + 0.4 * rng.beta(3, 1.5, people),
    }[kind]
    who = np.argpartition(rng.random((pairs, people)), each, axis=1)[:, :each].ravel()
    item = np.repeat(np.arange(pairs), each)
    chance = right[who]
    if kind == "hard":
        chance = np.where((rng.random(pairs) < 0.4)[item], 0.5, chance)
    named = rng.random(len(who)) < chance
    first_is_better = (rng.random(pairs) < 0.5)[item]
    return Crossed.of(item, who, (named != first_is_better).astype(np.int64), 2)


def agreeing(kind: str) -> float:
    """The chance that two other people agree on another pair."""
    mean = {"alike": 0.85, "uneven": 0.5 + 0.5 * 4 / 6, "careless": 0.82, "contrary": 0.7875, "hard": 0.6 + 0.4 * 2 / 3}
    same = mean[kind] ** 2 + (1 - mean[kind]) ** 2
    return 0.4 * 0.5 + 0.6 * same if kind == "hard" else same


CROWDS = pytest.mark.parametrize(
    ("people", "pairs", "each", "kind"),
    [
        (60, 200, 3, "uneven"),
        (60, 200, 2, "careless"),
        (40, 150, 6, "hard"),
        (120, 300, 2, "contrary"),
        (40, 100, 3, "alike"),
    ],
)


def coverage(logs: int, people: int, pairs: int, each: int, kind: str) -> tuple[float, float, float]:
    """Of 95 % intervals the share that holds the truth: of agreement, of alpha, and of agreement by pair."""
    held = []
    truth = agreeing(kind)
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        for _ in range(logs):
            judged = log(rng, people, pairs, each, kind)
            share, alpha, plain = agree_by_person(judged), alpha_by_person(judged), percent_agreement(judged.counts)
            assert share is not None and alpha is not None and plain is not None
            # Either answer is first as often, so chance agrees on half.
            held.append((share.holds(truth), alpha.holds(2 * truth - 1), plain.holds(truth)))
    of_share, of_alpha, by_pair = np.mean(held, axis=0)
    return float(of_share), float(of_alpha), float(by_pair)


@pytest.mark.slow
@CROWDS
def test_the_interval_of_agreement_holds_the_truth(people: int, pairs: int, each: int, kind: str):
    of_share, of_alpha, by_pair = coverage(FEW, people, pairs, each, kind)
    assert of_share >= 0.88 and of_alpha >= 0.88
    if kind in ("careless", "contrary"):
        assert by_pair < 0.9  # what counting pairs as independent would give


@pytest.mark.thorough
@CROWDS
def test_the_interval_of_agreement_holds_the_truth_as_often_as_it_says(people: int, pairs: int, each: int, kind: str):
    of_share, of_alpha, by_pair = coverage(MANY, people, pairs, each, kind)
    sys.stdout.write(f"{kind}: agreement {of_share:.3f}, alpha {of_alpha:.3f}, by pair {by_pair:.3f}\n")
    assert 0.93 <= of_share <= 0.97
    assert 0.92 <= of_alpha <= 0.98


def test_the_variance_is_the_sum_over_all_duos_that_share_a_person_or_an_item():
    rng = np.random.default_rng(3)
    who = [rng.choice(7, n, replace=False) for n in rng.integers(2, 6, 25)]
    item = np.repeat(np.arange(25), [len(each) for each in who])
    judged = Crossed.of(item, np.concatenate(who), rng.integers(0, 3, len(item)), 3)
    effect = rng.normal(size=(3, 3))
    effect += effect.T
    duos, values = [], []
    for unit in range(25):
        here = np.flatnonzero(judged.item == unit)
        for i, j in combinations(here, 2):
            duos.append((unit, {judged.person[i], judged.person[j]}))
            values.append(effect[judged.said[i], judged.said[j]] / (len(here) - 1))
    sharing = {"person": 0.0, "item": 0.0, "both": 0.0}
    for (u, a), x in zip(duos, values, strict=True):
        for (v, b), y in zip(duos, values, strict=True):
            sharing["person"] += x * y * bool(a & b)
            sharing["item"] += x * y * (u == v)
            sharing["both"] += x * y * (u == v and bool(a & b))
    own, people = sum(x * x for x in values), judged.people
    grown = people * (people - 1) / (people - 2) ** 2
    person = max(grown * sharing["person"] - (grown - 1) * own, own)
    expected = max(person + max(sharing["item"] - sharing["both"], 0.0), sharing["item"])
    assert judged.variance(effect) == pytest.approx(expected, rel=1e-9)


def test_many_people_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch):
    judged = log(np.random.default_rng(0), 50, 200, 4, "uneven")
    whole = agree_by_person(judged)
    monkeypatch.setattr("raylign.feedback.trust.crossed._CHUNK", 100)
    chunked = agree_by_person(judged)
    monkeypatch.setattr("raylign.feedback.trust.crossed._MOST_DUOS", 10)
    wider = agree_by_person(judged)
    assert whole is not None and chunked is not None and wider is not None
    assert chunked.low == pytest.approx(whole.low, abs=1e-12) and wider.low < whole.low < whole.value == wider.value


def test_few_people_are_spoken_of_and_nobody_else():
    rng = np.random.default_rng(0)

    def judged(people: int) -> pl.DataFrame:
        rows = [
            {"rater": f"p{person}", "known": True, "pair": pair, "judging": pair * 100 + person, "score_a": 1.0,
             "picked": "first" if rng.random() < 0.8 else "second"}
            for pair in range(60) for person in rng.choice(people, 3, replace=False)
        ]  # fmt: skip
        return pl.DataFrame(
            [{name: row.get(name) for name in JUDGEMENT_SCHEMA} for row in rows], schema=JUDGEMENT_SCHEMA
        )

    few, many = agreement(judged(5)), agreement(judged(60))
    assert (few.by_person, many.by_person) == (False, True) and few.raters == 5
    assert few.alpha is not None and few.agree is not None and few.agree == few.agree_decided


def test_perfect_agreement_of_some_people_is_no_certainty_about_others():
    judged = Crossed.of(np.repeat(np.arange(90), 2), np.tile(np.arange(30), 6), np.zeros(180, np.int64), 2)
    found, alpha = agree_by_person(judged), alpha_nominal(judged.counts)
    assert found is not None and found.value == 1 and 0.8 < found.low < 0.95 and alpha is None
