"""A reward replica whose process dies is started again, not for ever, and a run without any ends resumable. No Ray."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError
from raylign.cluster.reserve import Place
from raylign.conf.errors import Stopped
from raylign.conf.schema import Device, RewardConfig
from raylign.data.types import FinishReason, Reward, SampleKey
from raylign.reward import pool as pool_module
from raylign.reward.pool import Replica, ReplicaSpec, RewardPool
from raylign.reward.sources import RewardSources
from raylign.rollout.interfaces import GroupHandle, Ref, RolloutMeta

GROUPS = [GroupHandle(Ref("g"), (RolloutMeta(SampleKey(0, "p", 0), 3, 4, FinishReason.STOP, 1, 1, 1),))]


class Answer:
    def __init__(self, result: Any) -> None:
        self.result = result

    def future(self) -> Future[Any]:
        done: Future[Any] = Future()
        if isinstance(self.result, BaseException):
            done.set_exception(self.result)
        else:
            done.set_result(self.result)
        return done


class Call:
    def __init__(self, result: Any) -> None:
        self.result = result

    def remote(self, *_: object) -> Answer:
        return Answer(self.result)


class Process:
    """What stands for the actor."""

    def __init__(self, lives: bool) -> None:
        self.start = Call(None)
        self.score = Call([Reward(SampleKey(0, "p", 0), 1.0, {})] if lives else ActorDiedError())


class Room:
    def __init__(self) -> None:
        self.options: dict[str, object] = {}

    async def ready(self, timeout_s: float) -> bool:
        return True

    def release(self) -> None: ...


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """Those that were started; `dying` of them are dead at their first question."""
    made: list[Process] = []
    real = asyncio.sleep
    monkeypatch.setattr(pool_module.ray, "kill", lambda _: None)
    monkeypatch.setattr(pool_module.asyncio, "sleep", lambda _: real(0))  # no pause is waited for
    return made


def replica(made: list[Process], *, dying: int, most: int, rank: int = 0) -> Replica:
    class Watched(Replica):
        def _spawn(self) -> Any:
            made.append(Process(lives=len(made) >= dying))
            return made[-1]

    spec = ReplicaSpec(RewardConfig(), Device.cpu, RewardSources(), start_timeout_s=5.0, max_restarts=most)
    place = cast("Place", Room())
    return Watched(rank, spec, place=place, another=lambda: place, env_vars={})


async def test_one_death_costs_nothing(processes: list[Process]) -> None:
    pool = RewardPool([replica(processes, dying=1, most=2)], RewardConfig(), cast("Any", None))
    assert all(isinstance(outcome, Reward) for outcome in await pool.score(GROUPS))
    assert len(processes) == 2


async def test_the_last_one_given_up_ends_the_run_resumable_with_the_reason(
    processes: list[Process], caplog: pytest.LogCaptureFixture
) -> None:
    pool = RewardPool([replica(processes, dying=99, most=1)], RewardConfig(), cast("Any", None))
    with pytest.raises(Stopped, match=r"no reward replica is left: reward replica 0 .*died"):
        await pool.score(GROUPS)
    assert len(processes) == 2, "one and its only restart"
    said = [record.message for record in caplog.records if "max_worker_restarts=1" in record.message]
    assert len(said) == 1 and said[0].startswith("reward/0 died 2 times")
    assert [dead.given_up for dead in pool.take_dead()] == [True]


async def test_the_others_go_on_without_one_that_is_given_up(processes: list[Process]) -> None:
    bad = replica(processes, dying=99, most=0)
    good = replica([Process(lives=True)] * 9, dying=0, most=0, rank=1)
    pool = RewardPool([bad, good], RewardConfig(), cast("Any", None))
    for _ in range(3):
        assert all(isinstance(outcome, Reward) for outcome in await pool.score(GROUPS))
    assert len(processes) == 1
