"""Routing, loss of workers and membership, on simulated engines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from raylign.data.types import (
    Completion,
    FinishReason,
    Prompt,
    RolloutGroup,
    RolloutMeta,
    SampleKey,
    SamplingParams,
    VersionSpan,
)
from raylign.rollout.interfaces import (
    Canary,
    EngineDead,
    GenerationRequest,
    GroupHandle,
    NoWorkerLeft,
    Ref,
    VerifyReport,
    WeightManifest,
    WeightUpdateError,
)
from raylign.rollout.member import MemberState
from raylign.rollout.pool import RolloutPool

SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=8)
Fault = Callable[[int], Awaitable[None]]


async def no_fault(call: int) -> None:
    await asyncio.sleep(0.001)


class SimulatedWorker:
    """Answers every request after its fault function let it; counts what it was given."""

    def __init__(self, name: str, fault: Fault = no_fault) -> None:
        self.name, self.fault = name, fault
        self.calls = 0
        self.served: list[SampleKey] = []
        self.stopped = False
        self.alive = True

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[GroupHandle]:
        self.calls += 1
        await self.fault(self.calls)
        handles = []
        for request in requests:
            self.served += request.keys
            completions = tuple(
                Completion(k, (1,), (-0.5,), FinishReason.STOP, (VersionSpan(3, 0, 1),), "x") for k in request.keys
            )
            metas = tuple(
                RolloutMeta(k, len(request.prompt.token_ids), 1, FinishReason.STOP, 3, 3, 3) for k in request.keys
            )
            handles.append(
                GroupHandle(Ref((self.name, RolloutGroup(request.prompt, request.sampling, completions))), metas)
            )
        return handles

    async def begin_update(self, manifest: WeightManifest) -> None: ...
    async def load_bucket(self, bucket: Ref) -> None: ...
    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        return VerifyReport(1, {}, (), (), 0.0)

    async def resume(self, version: int) -> None: ...
    async def sleep(self) -> None: ...
    async def ping(self) -> None:
        if not self.alive:
            raise EngineDead(f"{self.name} does not answer")

    async def stop(self) -> None:
        self.stopped = True


def prompts(count: int, length: int = 4) -> list[Prompt]:
    return [Prompt(f"p{i}", (), tuple(range(1, length + 1))) for i in range(count)]


async def pool_of(*workers: SimulatedWorker, timeout_s: float = 5.0, max_concurrent: int = 64) -> RolloutPool:
    pool = RolloutPool(workers, max_concurrent=max_concurrent, timeout_s=timeout_s)
    for member in pool.members():
        await member.resume(1)
    return pool


async def run(pool: RolloutPool, count: int = 12) -> list[GroupHandle]:
    return await pool.generate(prompts(count), epoch=2, samples_per_prompt=3, sampling=SAMPLING)


def expected(count: int) -> list[tuple[SampleKey, ...]]:
    return [tuple(SampleKey(2, f"p{i}", k) for k in range(3)) for i in range(count)]


def keys(handles: Sequence[GroupHandle]) -> list[tuple[SampleKey, ...]]:
    return [tuple(meta.key for meta in handle.metas) for handle in handles]


async def test_results_come_in_prompt_order_and_work_is_shared() -> None:
    workers = [SimulatedWorker(f"rollout/{i}") for i in range(3)]
    handles = await run(await pool_of(*workers))
    assert keys(handles) == expected(12)
    assert [len(worker.served) for worker in workers] == [12, 12, 12]


async def test_the_samples_of_one_prompt_stay_on_one_worker() -> None:
    handles = await run(await pool_of(SimulatedWorker("rollout/0"), SimulatedWorker("rollout/1")))
    assert all(len({meta.key.prompt_id for meta in handle.metas}) == 1 for handle in handles)


async def test_long_prompts_count_for_more() -> None:
    workers = [SimulatedWorker(f"rollout/{i}") for i in range(2)]
    pool = await pool_of(*workers)
    batch = [Prompt("long", (), (1,) * 90), *prompts(3)]  # 98 tokens against 3 x 12 with one sample each
    await pool.generate(batch, epoch=0, samples_per_prompt=1, sampling=SAMPLING)
    assert sorted(len(worker.served) for worker in workers) == [1, 3]


async def test_no_worker_holds_more_than_its_limit() -> None:
    most = 0

    async def watch(_: int) -> None:
        nonlocal most
        most = max(most, pool.members()[0].outstanding_samples)
        await asyncio.sleep(0.001)

    pool = await pool_of(SimulatedWorker("rollout/0", watch), max_concurrent=6)
    assert keys(await run(pool)) == expected(12)
    assert most == 6


async def test_a_dying_worker_loses_no_prompt_and_doubles_none() -> None:
    async def dies(call: int) -> None:
        await asyncio.sleep(0.001)
        if call >= 3:
            raise EngineDead("rollout/0: SIGKILL")

    mortal, healthy = SimulatedWorker("rollout/0", dies), SimulatedWorker("rollout/1")
    pool = await pool_of(mortal, healthy)
    handles = await run(pool)
    assert keys(handles) == expected(12)
    assert pool.members()[0].name == "rollout/1" and len(pool.members()) == 1
    counts = pool.counts()
    assert counts.deaths == 1 and counts.requeued_prompts > 0
    assert not any(meta.key in mortal.served[6:] for handle in handles for meta in handle.metas)


async def test_a_hung_call_of_a_dead_worker_is_not_waited_for() -> None:
    async def first_dies_others_hang(call: int) -> None:
        await asyncio.sleep(0.001 if call == 1 else 3600)
        raise EngineDead("rollout/0: node lost")

    pool = await pool_of(SimulatedWorker("rollout/0", first_dies_others_hang), SimulatedWorker("rollout/1"))
    async with asyncio.timeout(2):
        assert keys(await run(pool)) == expected(12)


async def test_a_refused_worker_is_quarantined_not_buried() -> None:
    async def refuses(_: int) -> None:
        raise WeightUpdateError("rollout/0 does not serve")

    pool = await pool_of(SimulatedWorker("rollout/0", refuses), SimulatedWorker("rollout/1"))
    assert keys(await run(pool)) == expected(12)
    assert [member.state for member in pool.members()] == [MemberState.QUARANTINED, MemberState.SERVING]


async def test_the_deadline_names_who_is_late() -> None:
    async def hangs(_: int) -> None:
        await asyncio.sleep(3600)

    pool = await pool_of(SimulatedWorker("rollout/0", hangs), SimulatedWorker("rollout/1"), timeout_s=0.2)
    with pytest.raises(EngineDead, match=r"rollout\.timeout_s=0\.2 s; late: rollout/0 \(18 samples\)"):
        await run(pool)
    await asyncio.sleep(0.01)
    assert pool.members()[0].outstanding_samples == 0  # cancelled calls are no longer counted


async def test_a_prompt_that_fails_everywhere_ends_the_step() -> None:
    async def dies(_: int) -> None:
        raise EngineDead("out of memory")

    pool = await pool_of(*(SimulatedWorker(f"rollout/{i}", dies) for i in range(5)))
    with pytest.raises(EngineDead, match="failed on 3 workers: out of memory"):
        await run(pool, count=1)


async def test_the_last_worker_gone_says_so() -> None:
    async def dies(_: int) -> None:
        raise EngineDead("rollout/0: segmentation fault")

    pool = await pool_of(SimulatedWorker("rollout/0", dies))
    with pytest.raises(NoWorkerLeft, match=r"no rollout worker serves: rollout/0 dead .*segmentation fault"):
        await run(pool)


async def test_a_step_waits_for_a_worker_that_is_expected_and_loses_no_prompt() -> None:
    async def dies(_: int) -> None:
        raise EngineDead("rollout/0: segmentation fault")

    coming = [True]
    pool = await pool_of(SimulatedWorker("rollout/0", dies))
    pool.expect(lambda: coming[0])
    step = asyncio.create_task(run(pool))
    await asyncio.sleep(0.05)
    assert not step.done()
    pool.add_worker(second := SimulatedWorker("rollout/1"))
    (member,) = pool.members()
    await asyncio.sleep(0.05)
    assert not step.done(), "it has no weights yet"
    await member.resume(3)
    assert keys(await step) == expected(12)
    coming[0], second.fault = False, dies
    with pytest.raises(NoWorkerLeft, match="no rollout worker serves"):
        await run(pool)


async def test_a_worker_that_is_expected_and_never_comes_is_waited_for_until_the_deadline() -> None:
    async def dies(_: int) -> None:
        raise EngineDead("rollout/0: segmentation fault")

    pool = await pool_of(SimulatedWorker("rollout/0", dies), timeout_s=0.2)
    pool.expect(lambda: True)
    with pytest.raises(NoWorkerLeft, match="no rollout worker serves: rollout/0 dead"):
        await run(pool)


async def test_a_new_worker_serves_only_after_a_publication() -> None:
    old, new = SimulatedWorker("rollout/0"), SimulatedWorker("rollout/1")
    pool = await pool_of(old)
    pool.add_worker(new)
    await run(pool)
    assert not new.served and pool.counts().workers == 2 and pool.counts().serving == 1
    await pool.members()[1].resume(2)
    await run(pool)
    assert new.served
    with pytest.raises(ValueError, match="rollout/1 is in the pool already"):
        pool.add_worker(SimulatedWorker("rollout/1"))


async def test_a_removed_worker_finishes_first() -> None:
    async def slow(_: int) -> None:
        await asyncio.sleep(0.1)

    leaving, staying = SimulatedWorker("rollout/0", slow), SimulatedWorker("rollout/1")
    pool = await pool_of(leaving, staying)
    step = asyncio.create_task(run(pool))
    await asyncio.sleep(0.01)
    await pool.remove_worker("rollout/0")
    assert (leaving.stopped and leaving.served and not step.done()) or keys(await step) == expected(12)
    assert keys(await step) == expected(12)
    assert [member.name for member in pool.members()] == ["rollout/1"]
    with pytest.raises(KeyError, match="no rollout worker is named 'rollout/0'"):
        await pool.remove_worker("rollout/0")


async def test_probe_buries_what_does_not_answer() -> None:
    silent = SimulatedWorker("rollout/0")
    pool = await pool_of(silent, SimulatedWorker("rollout/1"))
    silent.alive = False
    await pool.probe()
    assert [member.name for member in pool.members()] == ["rollout/1"]


async def test_answers_for_other_samples_are_not_taken() -> None:
    class Confused(SimulatedWorker):
        async def generate(self, requests: Sequence[GenerationRequest]) -> list[GroupHandle]:
            handles = await super().generate(requests)
            return [GroupHandle(handle.ref, handle.metas[:-1]) for handle in handles]

    pool = await pool_of(Confused("rollout/0"), SimulatedWorker("rollout/1"))
    assert keys(await run(pool)) == expected(12)
    assert [member.name for member in pool.members()] == ["rollout/1"]


async def test_what_would_make_wrong_numbers_is_refused() -> None:
    pool = await pool_of(SimulatedWorker("rollout/0"))
    nucleus = SamplingParams(temperature=1.0, max_new_tokens=8, top_p=0.9)
    with pytest.raises(ValueError, match=r"top_p=0\.9"):
        await pool.generate(prompts(1), epoch=0, samples_per_prompt=1, sampling=nucleus)
    with pytest.raises(ValueError, match="occurs twice"):
        await pool.generate(prompts(1) * 2, epoch=0, samples_per_prompt=1, sampling=SAMPLING)


async def test_a_silent_worker_that_a_probe_finds_dead_is_not_waited_for():
    async def hang(call: int) -> None:
        await asyncio.sleep(3600)

    silent, good = SimulatedWorker("silent", hang), SimulatedWorker("good")
    pool = await pool_of(silent, good, timeout_s=20.0)
    running = asyncio.create_task(pool.generate(prompts(4), epoch=0, samples_per_prompt=1, sampling=SAMPLING))
    while not silent.calls or len(good.served) < 2:  # nothing but the silent worker's call is left to wait for
        await asyncio.sleep(0.05)
    silent.alive = False
    await pool.probe()

    async with asyncio.timeout(5.0):
        handles = await running
    assert len(handles) == 4 and len(good.served) == 4


async def test_a_hung_engine_is_found_while_the_step_runs():
    """SIGSTOP: its call never returns and neither do its health checks; nobody calls `probe` from outside."""

    async def hang(call: int) -> None:
        hung.alive = False
        await asyncio.sleep(3600)

    hung, good = SimulatedWorker("rollout/0", hang), SimulatedWorker("rollout/1")
    pool = RolloutPool([hung, good], max_concurrent=64, timeout_s=3600.0, probe_every_s=0.05)
    for member in pool.members():
        await member.resume(1)
    async with asyncio.timeout(10.0):
        assert keys(await run(pool)) == expected(12)
    assert [member.name for member in pool.take_dead()] == ["rollout/0"]
    assert pool.counts().deaths == 1 and not pool.take_dead()


@pytest.mark.slow
async def test_an_engine_that_only_answers_health_checks_loses_its_work_at_half_time():
    async def hang(call: int) -> None:
        await asyncio.sleep(3600)

    stuck, good = SimulatedWorker("rollout/0", hang), SimulatedWorker("rollout/1")
    pool = await pool_of(stuck, good, timeout_s=4.0)
    assert keys(await run(pool)) == expected(12)
    assert [member.reason for member in pool.take_dead()] == [
        "rollout/0: no answer within half of rollout.timeout_s while another worker is idle"
    ]


async def test_prompts_wait_while_every_worker_is_updated_and_go_on_at_once_after() -> None:
    worker = SimulatedWorker("rollout/0")
    pool = await pool_of(worker)
    (member,) = pool.members()
    await member.begin_update(WeightManifest(2, (), True))
    waiting = asyncio.create_task(run(pool, 4))
    await asyncio.sleep(0.05)
    assert not waiting.done() and worker.calls == 0
    await member.resume(2)
    async with asyncio.timeout(0.5):  # woken by the change, not by the next look
        assert keys(await waiting) == expected(4)


async def test_groups_are_handed_on_one_by_one_and_each_once() -> None:
    async def slow_first(call: int) -> None:
        await asyncio.sleep(0.05 if call == 1 else 0)

    arrived: list[int] = []
    pool = await pool_of(SimulatedWorker("rollout/0", slow_first))
    handles = await pool.generate(
        prompts(4), epoch=2, samples_per_prompt=3, sampling=SAMPLING, arrived=lambda number, _: arrived.append(number)
    )
    assert keys(handles) == expected(4)
    assert sorted(arrived) == [0, 1, 2, 3] and arrived[-1] == 0, "what was ready waited for the slow one"


async def test_a_second_step_waits_for_room_that_the_first_one_takes() -> None:
    """Steps that are made ahead share the workers."""
    worker = SimulatedWorker("rollout/0")
    pool = await pool_of(worker, max_concurrent=3)
    both = await asyncio.gather(
        pool.generate(prompts(4), epoch=2, samples_per_prompt=3, sampling=SAMPLING),
        pool.generate(prompts(4), epoch=3, samples_per_prompt=3, sampling=SAMPLING),
    )
    assert [[meta.key.epoch for handle in handles for meta in handle.metas] for handles in both] == [[2] * 12, [3] * 12]


async def test_steps_that_are_made_ahead_take_their_turns() -> None:
    """The training waits for the earliest one, so nothing of a later step is begun while that one has work to give."""
    workers = [SimulatedWorker(f"rollout/{i}") for i in range(2)]
    pool = await pool_of(*workers, max_concurrent=6)
    steps = [pool.generate(prompts(20), epoch=epoch, samples_per_prompt=3, sampling=SAMPLING) for epoch in (7, 3, 5, 4)]
    await asyncio.gather(*steps)
    for worker in workers:
        order = [key.epoch for key in worker.served]
        assert order == sorted(order, key=[7, 3, 5, 4].index), order


async def test_what_a_dying_worker_leaves_of_an_earlier_step_goes_before_a_later_one() -> None:
    dies, goes_on = asyncio.Event(), asyncio.Event()

    async def die(call: int) -> None:
        await dies.wait()
        raise EngineDead("gone")

    async def wait(call: int) -> None:
        await goes_on.wait()

    good = SimulatedWorker("rollout/1", wait)
    pool = await pool_of(SimulatedWorker("rollout/0", die), good, max_concurrent=3)
    steps = asyncio.gather(
        pool.generate(prompts(1), epoch=7, samples_per_prompt=3, sampling=SAMPLING),
        pool.generate(prompts(9), epoch=3, samples_per_prompt=3, sampling=SAMPLING),
    )
    dies.set()
    async with asyncio.timeout(5.0):
        while not pool.counts().requeued_prompts:
            await asyncio.sleep(0.001)
    goes_on.set()
    await steps
    assert [key.epoch for key in good.served[::3]] == [3, 7] + [3] * 8


async def test_a_step_that_is_given_up_lets_the_next_one_go_on() -> None:
    worker = SimulatedWorker("rollout/0")
    pool = await pool_of(worker, max_concurrent=3)
    first = asyncio.create_task(pool.generate(prompts(400), epoch=7, samples_per_prompt=3, sampling=SAMPLING))
    second = asyncio.create_task(pool.generate(prompts(4), epoch=3, samples_per_prompt=3, sampling=SAMPLING))
    await asyncio.sleep(0.02)
    first.cancel()
    async with asyncio.timeout(0.5):  # woken, not by the next look
        assert len(await second) == 4
