"""The policy that chooses the number of rollout workers, on simulated runs: it settles, and stays where it settled."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from raylign.rollout.autoscale import Autoscaler, Bounds, StepLoad
from raylign.rollout.load import Load, LoadClock

BOUNDS = Bounds(min_workers=1, max_workers=16, wait_share=0.2, steps=5, ahead=True)


def step(workers: int, work_s: float, training_s: float, *, ahead: bool = True, longest_s: float = 0.0) -> StepLoad:
    """A step whose generation is `work_s` of one engine's time, of which one answer takes `longest_s`."""
    generating = max(work_s / workers, longest_s)
    wait = max(0.0, generating - training_s) if ahead else generating
    ready = 1 if ahead and generating < 0.8 * training_s else 0
    return StepLoad(workers, training_s + wait, wait, generating, work_s, round(100 * work_s), ready)


def follow(
    scaler: Autoscaler, load: Callable[[int, int], StepLoad], *, start: int, steps: int, delay: int = 3, first: int = 0
) -> list[int]:
    """The workers of each step; a change is there `delay` steps after it was wanted, as starts take their time."""
    workers, wanted_at, seen = start, [start] * delay, []
    for number in range(first, first + steps):
        wanted_at.append(scaler.after_step(load(workers, number)))
        seen.append(workers)
        workers = wanted_at[-delay]
    return seen


def changes(seen: list[int]) -> list[int]:
    """The different sizes, in order."""
    return [size for i, size in enumerate(seen) if i == 0 or size != seen[i - 1]]


def test_a_starved_learner_is_fed_and_the_fleet_then_stays() -> None:
    seen = follow(Autoscaler(BOUNDS, 1), lambda n, _: step(n, work_s=60, training_s=10), start=1, steps=200)
    assert changes(seen) == [1, 2, 4, 5], "5 workers: 12 s of generation beside 10 s of training, 17 % waited"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ahead", [True, False])
def test_noise_of_a_quarter_makes_it_swing_neither_way(seed: int, ahead: bool) -> None:
    draw = random.Random(seed)
    bounds = Bounds(1, 16, wait_share=0.2 if ahead else 0.4, steps=5, ahead=ahead)

    def noisy(n: int, _: int) -> StepLoad:
        return step(n, 60 * draw.uniform(0.75, 1.25), 10 * draw.uniform(0.75, 1.25), ahead=ahead)

    seen = follow(Autoscaler(bounds, 1), noisy, start=1, steps=400)
    assert len(changes(seen)) <= 12, "of 80 decisions"
    assert len(changes(seen[250:])) <= 3 and max(seen[100:]) - min(seen[100:]) <= 3, changes(seen)


def test_surplus_workers_go_one_by_one_and_no_further_than_needed() -> None:
    seen = follow(Autoscaler(BOUNDS, 16), lambda n, _: step(n, work_s=60, training_s=10), start=16, steps=400)
    assert changes(seen) == list(range(16, 5, -1)), "6 workers: 9 % over; with 5 it would be 17 %, above 15 %"


def test_it_follows_a_load_that_changes() -> None:
    scaler = Autoscaler(BOUNDS, 2)
    assert follow(scaler, lambda n, _: step(n, 20, 10), start=2, steps=60)[-1] == 2
    assert follow(scaler, lambda n, _: step(n, 80, 10), start=2, steps=200)[-1] == 7
    assert follow(scaler, lambda n, _: step(n, 20, 10), start=7, steps=300)[-1] == 2


def test_the_bounds_hold() -> None:
    tight = Bounds(2, 3, 0.2, 5, ahead=True)
    assert set(follow(Autoscaler(tight, 2), lambda n, _: step(n, 900, 10), start=2, steps=100)) == {2, 3}
    assert set(follow(Autoscaler(tight, 2), lambda n, _: step(n, 1, 10), start=2, steps=100)) == {2}


def test_workers_that_would_wait_for_the_longest_answer_are_not_added() -> None:
    seen = follow(Autoscaler(BOUNDS, 4), lambda n, _: step(n, 40, 10, longest_s=40), start=4, steps=200)
    assert changes(seen) == [4]


def test_growth_that_shortens_nothing_is_not_followed_by_more_until_the_load_is_another() -> None:
    def stuck(n: int, _: int) -> StepLoad:  # the engines share what they lack: a disk, a memory bus
        return StepLoad(n, 40, 30, 30, 30.0 * n, 6000, 0)

    scaler = Autoscaler(BOUNDS, 2)
    assert changes(follow(scaler, stuck, start=2, steps=200)) == [2, 4]
    assert follow(scaler, lambda n, _: step(n, 600, 10), start=4, steps=200)[-1] == 16


def test_nothing_is_measured_while_a_change_is_under_way() -> None:
    scaler = Autoscaler(BOUNDS, 1)
    assert [scaler.after_step(step(1, 60, 10)) for _ in range(30)] == [1] * 4 + [2] * 26


def test_busy_time_is_counted_once_for_the_pool_and_once_a_worker() -> None:
    now = [0.0]
    clock = LoadClock(lambda: now[0])
    for at, change in ((1.0, 1), (3.0, 1), (4.0, -1), (6.0, -1)):
        now[0] = at
        clock.change(change)
    now[0] = 10.0
    assert clock.total() == Load(generating_s=5.0, worker_s=6.0)
    assert clock.total().since(Load(1.0, 2.0)) == Load(4.0, 4.0)
