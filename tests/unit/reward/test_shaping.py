from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.data.types import Reward, RewardFailure, SampleKey
from raylign.reward.interfaces import ShapingState, WeightedComponent
from raylign.reward.shaping import (
    EMPTY_STATE,
    Overlong,
    Response,
    Shaping,
    merge,
    observe,
    shape,
    standard_deviation,
    weighted_sum,
)

PLAIN = Shaping(normalize=False, truncation_penalty=0.0, clip=0.0)
KEPT, CUT = Response(5, truncated=False), Response(8, truncated=True)
FLOATS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


def reward(k: int, score: float) -> Reward:
    return Reward(SampleKey(0, "p", k), score, {"model": score})


def scores(outcomes: list[Reward | RewardFailure]) -> list[float]:
    return [o.score for o in outcomes if isinstance(o, Reward)]


@settings(deadline=None)  # the machine may be busy
@given(FLOATS, FLOATS, FLOATS)
def test_statistics_in_parts_equal_those_in_one_pass(a: list[float], b: list[float], c: list[float]) -> None:
    parts = observe(observe(observe(EMPTY_STATE, a), b), c)
    other_order = merge(observe(EMPTY_STATE, c), merge(observe(EMPTY_STATE, b), observe(EMPTY_STATE, a)))
    for state in (parts, other_order):
        assert state.mean == pytest.approx(statistics.fmean(a + b + c), abs=1e-6)
        assert standard_deviation(state) == pytest.approx(statistics.pstdev(a + b + c), abs=1e-4)


def test_normalisation_uses_every_step_so_far_and_survives_a_save() -> None:
    shaping = replace(PLAIN, normalize=True)
    _, state = shape([reward(0, 0.0), reward(1, 4.0)], [KEPT, KEPT], shaping, EMPTY_STATE)
    restored = ShapingState(**state.as_dict())
    shaped, after = shape([reward(0, 2.0), reward(1, 10.0)], [KEPT, KEPT], shaping, restored)
    mean, std = 4.0, statistics.pstdev([0, 4, 2, 10])
    assert scores(shaped) == pytest.approx([(2 - mean) / std, (10 - mean) / std])
    assert after.count == 4


def test_a_failure_is_neither_shaped_nor_counted() -> None:
    failure = RewardFailure(SampleKey(0, "p", 9), "late")
    shaped, state = shape(
        [reward(0, 1.0), failure, reward(1, 3.0)], [KEPT] * 3, replace(PLAIN, normalize=True), EMPTY_STATE
    )
    assert shaped[1] is failure
    assert (state.count, state.mean) == (2, 2.0)


def test_penalty_then_clip_and_components_stay_as_they_were() -> None:
    shaping = Shaping(normalize=False, truncation_penalty=1.5, clip=2.0)
    shaped, state = shape([reward(0, 1.0), reward(1, 1.0), reward(2, 9.0)], [KEPT, CUT, CUT], shaping, EMPTY_STATE)
    assert scores(shaped) == [1.0, -0.5, 2.0]
    assert isinstance(shaped[2], Reward) and shaped[2].components == {"model": 9.0}
    assert state == EMPTY_STATE


def test_a_constant_reward_becomes_zero_not_noise() -> None:
    shaped, _ = shape([reward(k, 0.1) for k in range(7)], [KEPT] * 7, replace(PLAIN, normalize=True), EMPTY_STATE)
    assert scores(shaped) == pytest.approx([0.0] * 7, abs=1e-6)


def test_weighted_sum_wants_every_weighted_component() -> None:
    weights = [WeightedComponent("model", 1.0), WeightedComponent("finished", -0.5)]
    assert weighted_sum({"model": 2.0, "finished": 1.0, "unweighted": 100.0}, weights) == 1.5
    with pytest.raises(KeyError):
        weighted_sum({"model": 2.0}, weights)


def test_the_overlong_penalty_is_that_of_dapo_equation_13() -> None:
    """R_length: 0 up to L_max - L_cache, then ((L_max - L_cache) - |y|) / L_cache, -1 at L_max."""
    shaping = replace(PLAIN, overlong=Overlong(limit=100, window=40, penalty=1.0))
    lengths = [1, 60, 61, 80, 99, 100]
    shaped, _ = shape(
        [reward(k, 2.0) for k in range(6)], [Response(n, n == 100) for n in lengths], shaping, EMPTY_STATE
    )
    expected = [2.0 + (0.0 if n <= 60 else (60 - n) / 40) for n in lengths]
    assert scores(shaped) == pytest.approx(expected)
    assert expected[-1] == 1.0
