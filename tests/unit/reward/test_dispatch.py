"""Dealing groups to replicas that work, refuse, die and hang: every sample has exactly one outcome, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from raylign.conf.schema import RemoteRewardConfig, RewardConfig
from raylign.data.types import FinishReason, Reward, RewardFailure, RewardOutcome, RolloutMeta, SampleKey
from raylign.reward.dispatch import PieceRefused, Ready, ReplicaDown, Score, dispatch
from raylign.reward.pool import piece_tokens
from raylign.rollout.interfaces import GroupHandle, Ref


def group(number: int, tokens: int = 10) -> GroupHandle:
    metas = tuple(
        RolloutMeta(SampleKey(0, str(number), k), tokens // 2, tokens - tokens // 2, FinishReason.STOP, 1, 1, 1)
        for k in range(2)
    )
    return GroupHandle(Ref(number), metas)


GROUPS = [group(n, tokens=10 + n) for n in range(9)]


def answers(groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
    return [Reward(m.key, float(m.key.prompt_id), {}) for g in groups for m in g.metas]


async def working(groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
    await asyncio.sleep(0)
    return answers(groups)


def broken(error: Exception, *, after: int = 0) -> tuple[Score, list[int]]:
    """A replica that fails from its call number `after` on, and the sizes it was asked for."""
    asked: list[int] = []

    async def score(groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        asked.append(len(groups))
        await asyncio.sleep(0)
        if len(asked) > after:
            raise error
        return answers(groups)

    return score, asked


async def at_once() -> None: ...


def never_back(score: Score) -> Ready:
    """Serves once; after it went down it stays down."""
    asked: list[int] = []

    async def ready() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise ReplicaDown("it does not come back")

    return ready


def run(replicas: Sequence[Score], *, timeout_s: float = 5.0) -> list[RewardOutcome]:
    return asyncio.run(dispatch(GROUPS, [(r, never_back(r)) for r in replicas], piece_tokens=40, timeout_s=timeout_s))


@pytest.mark.parametrize("num_replicas", [1, 2, 5])
def test_outcomes_are_in_order_whoever_scored_them(num_replicas: int) -> None:
    assert run([working] * num_replicas) == answers(GROUPS)


@pytest.mark.parametrize("after", [0, 1])
def test_the_work_of_a_dead_replica_is_done_by_another(after: int) -> None:
    dead, asked = broken(ReplicaDown("reward replica 0 died: oom"), after=after)
    assert run([dead, working]) == answers(GROUPS)
    assert len(asked) == after + 1  # and it was not asked again


def test_a_refused_piece_fails_alone_after_two_tries() -> None:
    async def picky(groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        await asyncio.sleep(0)
        if any(g.metas[0].key.prompt_id == "4" for g in groups):
            raise PieceRefused("bad tokens")
        return answers(groups)

    outcomes = asyncio.run(dispatch(GROUPS, [(picky, at_once), (picky, at_once)], piece_tokens=1, timeout_s=5.0))
    failed = [o for o in outcomes if isinstance(o, RewardFailure)]
    assert [o.key for o in failed] == [m.key for m in GROUPS[4].metas]
    assert failed[0].reason == "bad tokens; bad tokens"
    assert [o.key for o in outcomes] == [m.key for g in GROUPS for m in g.metas]


def test_with_no_replica_left_every_sample_is_a_named_failure() -> None:
    first, _ = broken(ReplicaDown("reward replica 0 died: oom"))
    second, _ = broken(ReplicaDown("reward replica 1 died: oom"))
    outcomes = run([first, second])
    assert all(isinstance(o, RewardFailure) for o in outcomes)
    assert [o.key for o in outcomes] == [m.key for g in GROUPS for m in g.metas]
    reasons = {o.reason for o in outcomes if isinstance(o, RewardFailure)}
    assert "no reward replica is left" in reasons
    assert any("died: oom" in reason for reason in reasons)


def test_what_misses_the_deadline_fails_and_the_rest_stands() -> None:
    async def hangs(groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        await asyncio.sleep(60)
        return answers(groups)

    outcomes = run([working, hangs], timeout_s=0.3)
    late = [o for o in outcomes if isinstance(o, RewardFailure)]
    assert 0 < len(late) < len(outcomes)
    assert late[0].reason == "no score within reward.timeout_s=0.3 s"


def test_an_answer_for_other_samples_is_a_bug_and_raised() -> None:
    async def confused(groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        return answers(groups)[::-1]

    with pytest.raises(ValueError, match="answered for"):
        run([confused, working], timeout_s=5.0)


def test_the_only_replica_is_waited_for_until_it_is_back() -> None:
    calls: list[int] = []

    async def dies_once(groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        calls.append(len(groups))
        if len(calls) == 2:
            raise ReplicaDown("reward replica 0 unreachable: the actor is restarting")
        return answers(groups)

    waited: list[float] = []

    async def restarting() -> None:
        if calls:
            await asyncio.sleep(0.05)
            waited.append(0.05)

    outcomes = asyncio.run(dispatch(GROUPS, [(dies_once, restarting)], piece_tokens=40, timeout_s=5.0))
    assert outcomes == answers(GROUPS) and len(waited) == 1


def test_nobody_waits_for_a_replica_when_others_have_done_its_work() -> None:
    dead, _ = broken(ReplicaDown("reward replica 0 died: oom"))

    async def hours() -> None:
        if dead_asked:
            await asyncio.sleep(3600)

    dead_asked: list[int] = []

    async def dead_and_noted(groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        dead_asked.append(1)
        return await dead(groups)

    async def both() -> list[RewardOutcome]:
        async with asyncio.timeout(5.0):
            return await dispatch(
                GROUPS, [(dead_and_noted, hours), (working, at_once)], piece_tokens=40, timeout_s=3600.0
            )

    assert asyncio.run(both()) == answers(GROUPS) and dead_asked


def test_a_replica_that_never_stays_up_ends_the_step() -> None:
    dead, asked = broken(ReplicaDown("reward replica 0 died: out of memory"))
    outcomes = asyncio.run(dispatch(GROUPS, [(dead, at_once)], piece_tokens=1, timeout_s=5.0))
    assert all(isinstance(o, RewardFailure) for o in outcomes) and len(asked) == 4
    assert "out of memory" in outcomes[-1].reason


def test_who_asks_other_machines_is_given_its_whole_share_at_once() -> None:
    """A reward model takes a micro-batch; a server that answers many at a time would wait for each."""
    model = RewardConfig(model="m", micro_batch_tokens=30)
    assert piece_tokens(model, GROUPS, 2) == 30
    asking = RewardConfig(micro_batch_tokens=30, remote=[RemoteRewardConfig(url="http://h")])
    sizes: list[int] = []

    async def noted(groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        sizes.append(len(groups))
        return answers(groups)

    tokens = piece_tokens(asking, GROUPS, 1)
    asyncio.run(dispatch(GROUPS, [(noted, at_once)], piece_tokens=tokens, timeout_s=5.0))
    assert sizes == [len(GROUPS)]
