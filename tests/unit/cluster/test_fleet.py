"""A fleet that grows, shrinks and replaces its dead while steps go on, on simulated engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from raylign.cluster.fleet import MAX_FAILED_STARTS, Fleet
from raylign.rollout.interfaces import EngineDead
from raylign.rollout.pool import RolloutPool

from tests.unit.rollout.test_pool import SimulatedWorker, expected, keys, run


class Startable(SimulatedWorker):
    """Starts when it may; fails where told."""

    fails = False
    killed = False
    room = True

    async def placed(self, timeout_s: float) -> bool:
        await asyncio.sleep(0.001)
        return self.room

    async def start(self, timeout_s: float) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise EngineDead(f"{self.name}: start: no room")

    def kill(self) -> None:
        self.killed = True


class Spawner:
    def __init__(self, *, fails: bool = False) -> None:
        self.made: list[Startable] = []
        self.fails, self.room = fails, True

    def __call__(self, index: int) -> Startable:
        worker = Startable(f"rollout/{index}")
        worker.fails, worker.room = self.fails, self.room
        self.made.append(worker)
        return worker


async def play(pool: RolloutPool, fleet: Fleet, wanted: int, version: int) -> list[str]:
    """One step and its publication, as the loop has them; who served."""
    for member in pool.members():
        await member.resume(version)
    assert keys(await run(pool)) == expected(12)
    fleet.adjust(wanted)
    await asyncio.sleep(0.01)  # the next step's generation: starts go on meanwhile
    return [member.name for member in pool.members()]


class Clock:
    """Seconds pass when it is looked at: no pause between restarts is waited for."""

    def __init__(self, tick: float = 40.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def fleet_of_one(
    *, fails: bool = False, max_restarts: int = 5, clock: Callable[[], float] | None = None
) -> tuple[RolloutPool, Fleet, Spawner]:
    spawner = Spawner(fails=fails)
    pool = RolloutPool([SimulatedWorker("rollout/0")], max_concurrent=64, timeout_s=5.0)
    fleet = Fleet(
        pool,
        spawner,
        first_index=1,
        start_timeout_s=1.0,
        failures=(EngineDead,),
        max_restarts=max_restarts,
        clock=clock or Clock(),
    )
    return pool, fleet, spawner


async def test_one_to_four_to_two_on_a_live_run() -> None:
    pool, fleet, spawner = fleet_of_one()
    assert await play(pool, fleet, 4, 1) == ["rollout/0"], "a start holds no step up"
    assert await play(pool, fleet, 4, 2) == [f"rollout/{i}" for i in range(4)]
    assert not any(worker.served for worker in spawner.made), "served before a verified publication"
    assert len(await play(pool, fleet, 4, 3)) == 4 and all(worker.served for worker in spawner.made)
    assert await play(pool, fleet, 2, 4) == ["rollout/0", "rollout/1"]
    assert [worker.stopped for worker in spawner.made] == [False, True, True] and len(spawner.made) == 3


async def test_a_dead_worker_is_replaced_under_a_new_name_and_its_process_ended() -> None:
    pool, fleet, spawner = fleet_of_one()
    await play(pool, fleet, 2, 1)
    await play(pool, fleet, 2, 2)
    lost = spawner.made[0]
    lost.alive = False
    await pool.probe()
    await play(pool, fleet, 2, 3)
    assert await play(pool, fleet, 2, 4) == ["rollout/0", "rollout/2"]
    assert lost.stopped and pool.counts().deaths == 1


async def test_starts_that_fail_are_not_repeated_for_ever_and_a_new_order_tries_again() -> None:
    pool, fleet, spawner = fleet_of_one(fails=True)
    for version in range(1, MAX_FAILED_STARTS + 10):
        assert await play(pool, fleet, 2, version) == ["rollout/0"]
    assert len(spawner.made) == MAX_FAILED_STARTS and all(worker.killed for worker in spawner.made)
    spawner.fails = False
    await play(pool, fleet, 3, 90)
    assert len(await play(pool, fleet, 3, 91)) == 3


async def test_one_that_dies_before_it_has_served_counts_as_a_start_that_failed() -> None:
    pool, fleet, spawner = fleet_of_one()
    for version in range(1, 4 * MAX_FAILED_STARTS):
        for member in pool.members():
            if member.name == "rollout/0":
                await member.resume(version)
            else:
                member.die("its weights are wrong")  # what the publisher says of it
        assert keys(await run(pool)) == expected(12)
        fleet.adjust(2)
        await asyncio.sleep(0.01)
    assert len(spawner.made) == MAX_FAILED_STARTS and all(worker.stopped for worker in spawner.made)


async def test_one_that_has_served_makes_up_for_starts_that_failed() -> None:
    pool, fleet, spawner = fleet_of_one(fails=True)
    for version in range(1, MAX_FAILED_STARTS):
        await play(pool, fleet, 2, version)
    spawner.fails = False
    for version in range(20, 24):
        await play(pool, fleet, 2, version)
    spawner.fails = True
    pool.members()[1].die("killed")
    for version in range(30, 34 + MAX_FAILED_STARTS):
        await play(pool, fleet, 2, version)
    assert sum(worker.killed for worker in spawner.made) == 2 * MAX_FAILED_STARTS - 1


async def test_the_last_worker_never_leaves_and_what_is_starting_is_called_off() -> None:
    pool, fleet, spawner = fleet_of_one()
    fleet.adjust(3)
    fleet.adjust(0)
    assert [member.name for member in pool.members()] == ["rollout/0"]
    assert len(spawner.made) == 2 and all(worker.killed for worker in spawner.made)


async def test_waiting_for_room_is_no_failure_and_a_node_that_joins_is_used() -> None:
    pool, fleet, spawner = fleet_of_one()
    spawner.room = False
    for version in range(1, 4 * MAX_FAILED_STARTS):
        assert await play(pool, fleet, 2, version) == ["rollout/0"]
    assert len(spawner.made) == 1, "one worker waits; none is started again and again"
    spawner.made[0].room = True
    await play(pool, fleet, 2, 90)
    assert await play(pool, fleet, 2, 91) == ["rollout/0", "rollout/1"]


async def test_a_worker_that_leaves_finishes_what_it_has_while_the_run_goes_on() -> None:
    pool, fleet, spawner = fleet_of_one()
    await play(pool, fleet, 2, 1)
    await play(pool, fleet, 2, 2)
    for member in pool.members():
        await member.resume(3)
    ahead = asyncio.create_task(run(pool))  # the next step's prompts are on their way to both
    await asyncio.sleep(0)
    fleet.adjust(1)
    await asyncio.sleep(0)
    assert [member.name for member in pool.members()] == ["rollout/0"]
    assert keys(await ahead) == expected(12)
    await asyncio.sleep(0.05)
    assert spawner.made[0].stopped and pool.counts().deaths == 0


async def test_one_that_dies_while_it_leaves_costs_nothing() -> None:
    pool, fleet, _ = fleet_of_one()
    await play(pool, fleet, 2, 1)
    await play(pool, fleet, 2, 2)
    fleet.adjust(1)
    await asyncio.sleep(0)
    for member in pool._members:
        if member.name == "rollout/1":
            member.die("killed while it left")
    assert await play(pool, fleet, 1, 3) == ["rollout/0"]


async def test_on_shared_cards_none_joins_or_leaves_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    pool, _, spawner = fleet_of_one()
    fixed: Fleet = Fleet(pool, None, first_index=1, start_timeout_s=1, failures=(EngineDead,), max_restarts=5)
    for version in range(1, 4):
        assert await play(pool, fixed, 2, version) == ["rollout/0"]
    assert not spawner.made
    assert [record.message for record in caplog.records] == [
        "2 workers are wanted and 1 are left: on shared cards none joins or leaves"
    ]


async def killed_each_time(pool: RolloutPool, fleet: Fleet, versions: range, wanted: int = 2) -> None:
    """Whoever serves beside rollout/0 is killed after it has served."""
    for version in versions:
        await play(pool, fleet, wanted, version)
        for member in pool.members():
            if member.name != "rollout/0" and member.served:
                member.die(f"killed at {version}")


async def test_a_place_whose_workers_die_again_and_again_is_given_up_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool, fleet, spawner = fleet_of_one(max_restarts=3)
    await killed_each_time(pool, fleet, range(1, 40))
    assert len(spawner.made) == 4, "one and three restarts"
    assert all(worker.stopped for worker in spawner.made)
    assert [member.name for member in pool.members()] == ["rollout/0"], "the run goes on with the rest"
    said = [record.message for record in caplog.records if "max_worker_restarts" in record.message]
    assert len(said) == 1 and "rollout/4" in said[0] and "killed at" in said[0] and "4 times" in said[0]
    await play(pool, fleet, 3, 90)  # a new order tries again
    assert len(spawner.made) == 6


async def test_one_place_given_up_leaves_the_others_theirs() -> None:
    """Two places, one whose node kills: the other's worker stays, and is replaced when it dies for once."""
    pool, fleet, spawner = fleet_of_one(max_restarts=2)
    await play(pool, fleet, 3, 1)
    await play(pool, fleet, 3, 2)
    steady = pool.members()[1]
    for version in range(3, 30):
        await play(pool, fleet, 3, version)
        for member in pool.members():
            if member not in (steady, pool.members()[0]) and member.served:
                member.die("its node is bad")
    assert len(spawner.made) == 4 and steady in pool.members()
    steady.die("for once")
    await play(pool, fleet, 3, 90)
    await play(pool, fleet, 3, 91)
    assert len(pool.members()) == 2 and len(spawner.made) == 5


async def test_restarts_are_spaced_and_what_is_long_ago_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(tick=0.0)
    pool, fleet, spawner = fleet_of_one(max_restarts=3, clock=clock)
    await killed_each_time(pool, fleet, range(1, 4))
    await play(pool, fleet, 2, 4)
    assert len(spawner.made) == 2, "the first death is made good at once"
    await killed_each_time(pool, fleet, range(5, 15))
    assert len(spawner.made) == 2, "the second waits"
    clock.now += 6.0
    await killed_each_time(pool, fleet, range(15, 25))
    assert len(spawner.made) == 3
    clock.now += 6.0
    await killed_each_time(pool, fleet, range(25, 35))
    assert len(spawner.made) == 3, "and the third longer"
    for hour in range(1, 9):  # a death or two an hour, for as long as the run lasts
        clock.now += 4000.0
        await killed_each_time(pool, fleet, range(100 * hour, 100 * hour + 4))
    assert len(spawner.made) >= 3 + 8
    assert not any("is not started again" in record.message for record in caplog.records)


async def test_a_fleet_expects_a_worker_until_it_is_given_up() -> None:
    pool, fleet, _ = fleet_of_one(max_restarts=1, clock=Clock())
    assert not fleet.expects, "nobody is wanted yet"
    assert await play(pool, fleet, 1, 1) == ["rollout/0"] and not fleet.expects
    pool.members()[0].die("rollout/0: SIGKILL")
    assert fleet.expects, "the place will be filled"
    fleet.adjust(1)
    await asyncio.sleep(0.01)
    assert fleet.expects, "it is starting"
    fleet.adjust(1)
    assert fleet.size == 1 and not fleet.expects
    pool.members()[0].die("rollout/1: SIGKILL")
    fleet.adjust(1)
    assert not fleet.expects, "the second death within an hour was one too many"
