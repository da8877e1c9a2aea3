"""Draws by weight: long-run shares are the weights, and any interruption leaves the order as it was."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.conf.errors import DataError
from raylign.data.draw_weights import DrawSettings, refuse_too_few, solve_rate, weight_of
from raylign.data.types import Reward, RewardFailure, SampleKey
from raylign.data.weighted_sampler import WeightedSampler

PLAIN = DrawSettings({})
Teach = Callable[[int, int], float | None]
"""The solve rate of a row in a step."""


def sampler(sources: list[str], order: DrawSettings = PLAIN, *, seed: int = 3, shuffle: bool = True) -> WeightedSampler:
    return WeightedSampler(sources, order, seed=seed, shuffle=shuffle, data_hash="h")


def steps(made: WeightedSampler, sizes: list[int], teach: Teach, *, lag: int = 1, first: int = 1) -> list[list[int]]:
    """Rows of each step, drawn as far ahead as `lag` allows; each step is taught when it is its turn."""
    drawn: list[list[int]] = []
    for turn in range(1, len(sizes) + 1):
        while len(drawn) < min(turn + lag - 1, len(sizes)):
            made.begin()
            drawn.append([index for _, index in made.next_batch(sizes[len(drawn)])])
        made.teach(first + turn - 1, [teach(first + turn - 1, index) for index in drawn[turn - 1]])
    return drawn


def test_in_the_long_run_a_row_is_drawn_as_often_as_its_weight_says():
    rates = [0.0, 0.1, 0.26, 0.5, 0.8, 1.0]  # in 250ths
    order = DrawSettings({}, min_weight=0.2)
    counts = Counter[int]()
    for drawn in steps(sampler(["a"] * 6, order), [5] * 600, lambda _, index: rates[index]):
        counts.update(drawn)
    weights = [weight_of(rate, 0.2) for rate in rates]
    for index, weight in enumerate(weights):
        assert counts[index] == pytest.approx(3_000 * weight / sum(weights), abs=4), counts
    assert weights[0] == weights[5] == 0.2 and weights[3] == 1.0


@settings(max_examples=30)
@given(size=st.integers(1, 13), sizes=st.lists(st.integers(0, 30), max_size=8), seed=st.integers(0, 9))
def test_with_equal_weights_every_row_comes_once_an_epoch(size: int, sizes: list[int], seed: int):
    made, drawn = sampler(["a"] * size, replace(PLAIN, lag=99), seed=seed), []
    for n in sizes:
        made.begin()
        drawn += made.next_batch(n)
    assert [number for number, _ in drawn] == [i // size for i in range(len(drawn))]
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(index for _, index in drawn[start : start + size]) == list(range(size))


def test_a_source_is_never_further_than_one_draw_from_its_share():
    sources = ["a"] * 2 + ["b"] * 50 + ["c"] * 7 + ["d"] * 3
    made, counts = sampler(sources, DrawSettings({"a": 5, "b": 1, "c": 3.5, "d": 0})), Counter[str]()
    made.begin()
    for total in range(1, 2000):
        ((_, index),) = made.next_batch(1)
        counts[sources[index]] += 1
        for name, share in (("a", 5 / 9.5), ("b", 1 / 9.5), ("c", 3.5 / 9.5), ("d", 0.0)):
            assert abs(counts[name] - share * total) <= 1


def teaching(seed: int) -> Teach:
    def rate(step: int, index: int) -> float | None:
        drawn = random.Random(f"{seed} {step} {index}")
        return None if drawn.random() < 0.1 else drawn.choice([0.0, 0.25, 0.5, 0.75, 1.0])

    return rate


@settings(max_examples=15)
@given(
    lag=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    seed=st.integers(0, 999),
    shuffle=st.booleans(),
)
def test_resuming_at_every_step_equals_not_stopping(lag: int, sizes: list[int], seed: int, shuffle: bool):
    sources = ["a", "b", "a", "b", "b"]
    order = DrawSettings({"a": 2, "b": 1}, min_weight=0.3, lag=lag)
    straight = sampler(sources, order, seed=seed, shuffle=shuffle)
    expected = steps(straight, sizes, teaching(seed), lag=lag)
    for cut in range(len(sizes)):
        first = sampler(sources, order, seed=seed, shuffle=shuffle)
        steps(first, sizes[: cut + lag - 1], teaching(seed), lag=lag)  # drawn ahead, then killed
        ended = sampler(sources, order, seed=seed, shuffle=shuffle)
        steps(ended, sizes[:cut], teaching(seed), lag=lag)
        state = json.loads(json.dumps(dict(ended.state())))  # as a checkpoint keeps it
        second = WeightedSampler.from_state(state, sources, order, data_hash="h")
        assert steps(second, sizes[cut:], teaching(seed), lag=lag, first=cut + 1) == expected[cut:]
        assert second.state() == straight.state()
        assert [second.finished(s) for s in range(1, len(sizes) + 1)] == [
            straight.finished(s) for s in range(1, len(sizes) + 1)
        ]


def test_a_draw_depends_on_no_step_after_the_lag():
    order = DrawSettings({}, min_weight=0.1, lag=3)
    changed_at = 4

    def other(step: int, index: int) -> float | None:
        return 0.5 if step >= changed_at else teaching(1)(step, index)

    one, two = (steps(sampler(["a"] * 9, order), [4] * 12, rule, lag=3) for rule in (teaching(1), other))
    assert one[: changed_at + 2] == two[: changed_at + 2] and one != two
    early = sampler(["a"] * 9, order)
    for _ in range(3):
        early.begin()
        early.next_batch(1)
    with pytest.raises(ValueError, match="before step 1 is finished"):
        early.begin()


def test_a_weight_that_rises_again_makes_up_for_nothing():
    """What was solved for long and is not any more comes as often as the others, not more often for a while."""
    rates = {True: 1.0, False: 0.5}
    found = steps(sampler(["a"] * 10, DrawSettings({}, min_weight=0.01)), [5] * 600,
                  lambda step, index: rates[index == 0 and step < 300])  # fmt: skip
    back = next(step for step, rows in enumerate(found) if 0 in rows and step >= 300)
    for start in range(back + 1, 560, 10):
        assert 3 <= Counter(index for rows in found[start : start + 10] for index in rows)[0] <= 7


def test_no_row_is_drawn_more_often_than_allowed_and_the_end_is_named():
    made = sampler(["a"] * 3 + ["b"], DrawSettings({}, min_weight=0.5, max_draws=2))
    drawn = [index for rows in steps(made, [4, 4], lambda _, index: 0.5 if index else 0.0) for index in rows]
    assert Counter(drawn) == {0: 2, 1: 2, 2: 2, 3: 2}
    made.begin()
    with pytest.raises(DataError, match=r"max_draws=2: every prompt has been drawn so often"):
        made.next_batch(1)
    refuse_too_few({}, ["a"] * 3, 4, 12)
    with pytest.raises(DataError, match=r"max_draws=4: the run draws 13 prompts and has 3, .* or set it to 5"):
        refuse_too_few({}, ["a"] * 3, 4, 13)
    with pytest.raises(DataError, match="draws 9 prompts of b and has 1"):
        refuse_too_few({"a": 1, "b": 3}, ["a"] * 3 + ["b"], 4, 12)


@pytest.mark.parametrize(
    ("shares", "said"),
    [({"a": 1, "c": 1}, "no row has the data_source c; there are a, b"), ({"a": 1}, "rows have the data_source b too")],
)
def test_shares_that_do_not_fit_the_rows_are_refused(shares: dict[str, float], said: str):
    with pytest.raises(DataError, match=said):
        sampler(["a", "b"], DrawSettings(shares))


def test_another_order_or_other_data_refuse_a_resume():
    order = DrawSettings({"a": 1.0}, min_weight=0.5, max_draws=9, lag=2)
    state = sampler(["a"] * 3, order).state()
    for changed, said in (
        (replace(order, shares={"a": 2.0}), r"data.mix=\{'a': 2.0\}: it was \{'a': 1.0\}"),
        (replace(order, min_weight=1.0), "data.curriculum.min_weight=1.0: it was 0.5"),
        (replace(order, max_draws=0), "data.curriculum.max_draws=0: it was 9"),
        (replace(order, lag=1), "rollout.max_staleness=0: it was 1"),
    ):
        with pytest.raises(DataError, match=said):
            WeightedSampler.from_state(state, ["a"] * 3, changed, data_hash="h")
    for sources, digest in ((["a"] * 4, "h"), (["a"] * 3, "other")):
        with pytest.raises(DataError, match="the data have changed"):
            WeightedSampler.from_state(state, sources, order, data_hash=digest)


def test_the_order_never_changes_between_versions():
    # Recorded: a checkpoint written today must mean the same rows in any later version.
    made = sampler(["a"] * 6, DrawSettings({}, min_weight=0.25), seed=1)
    assert steps(made, [4, 4, 4], lambda _, index: index / 5) == RECORDED


RECORDED = [[2, 5, 1, 0], [4, 3, 4, 2], [3, 1, 1, 0]]


def test_solved_is_at_least_the_score_among_the_answers_that_have_one():
    keys = [SampleKey(0, "p", k) for k in range(4)]
    scored = [Reward(keys[0], 1.0, {}), Reward(keys[1], 0.9, {}), Reward(keys[2], 2.0, {}), RewardFailure(keys[3], "x")]
    assert solve_rate(scored, 1.0) == pytest.approx(2 / 3) and solve_rate(scored[3:], 1.0) is None
