"""Generation and weight updates never overlap."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from raylign.data.types import Prompt, SampleKey, SamplingParams
from raylign.rollout.completions import completion, refuse_overlong
from raylign.rollout.gate import Phase, ServingGate, gather_or_cancel
from raylign.rollout.interfaces import EngineDead, WeightUpdateError
from raylign.rollout.sampling import sample_seed


async def test_an_update_waits_for_running_calls_and_holds_new_ones_back() -> None:
    gate, log = ServingGate("rollout/0"), []

    async def call(name: str, seconds: float) -> None:
        async with gate.serving(5):
            log.append(f"{name} begins")
            await asyncio.sleep(seconds)
            log.append(f"{name} ends")

    first = asyncio.create_task(call("first", 0.05))
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(gate.close(5))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(call("second", 0))
    await closing
    log.append("closed")
    await gate.enter(Phase.SERVING)
    await asyncio.gather(first, second)
    assert log == ["first begins", "first ends", "closed", "second begins", "second ends"]


async def test_a_late_call_is_counted_and_nothing_is_touched() -> None:
    gate = ServingGate("rollout/0")
    async with gate.serving(1):
        with pytest.raises(WeightUpdateError, match=r"1 generation calls did not end within sync\.timeout_s=0\.05 s"):
            await gate.close(0.05)
        assert gate.phase is Phase.SERVING


async def test_a_refused_engine_turns_calls_away_and_an_endless_update_is_noticed() -> None:
    gate = ServingGate("rollout/0")
    await gate.enter(Phase.UPDATING)
    with pytest.raises(EngineDead, match=r"still in a weight update after 0\.05 s"):
        async with gate.serving(0.05):
            pass
    await gate.enter(Phase.REFUSED)
    with pytest.raises(WeightUpdateError, match="does not serve"):
        async with gate.serving(5):
            pass
    assert gate.in_flight == 0


async def test_no_call_outlives_a_failed_gather() -> None:
    cancelled = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("bad prompt")

    with pytest.raises(ValueError, match="bad prompt"):
        await gather_or_cancel([endless(), fails()])
    async with asyncio.timeout(1):
        await cancelled.wait()


def test_seeds_differ_by_key_and_never_change() -> None:
    keys = [SampleKey(e, p, k) for e in range(3) for p in ("a", "b", "1", "11") for k in range(12)]
    seeds = {sample_seed(7, key) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(7, SampleKey(0, "a", 0)) == 5503042152702538685


@dataclass
class Row:
    logprob: float


@dataclass
class Span:
    version: str
    start: int
    end: int


@dataclass
class Output:
    token_ids: list[int]
    logprobs: list[dict[int, Row]] | None
    finish_reason: str | None
    weight_versions: list[Span] | None
    text: str = "x"


def test_a_sample_carries_every_version_it_was_drawn_under() -> None:
    output = Output([4, 2], [{4: Row(-0.5)}, {2: Row(-1.5), 9: Row(-0.1)}], "stop", [Span("3", 0, 1), Span("4", 1, 2)])
    made = completion(SampleKey(0, "p", 1), output)
    assert made.response_ids == (4, 2) and made.rollout_logprobs == (-0.5, -1.5)
    assert (made.min_policy_version, made.max_policy_version) == (3, 4)
    with pytest.raises(EngineDead, match="finish_reason='abort'"):
        completion(SampleKey(0, "p", 1), Output([], [], "abort", None))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        completion(SampleKey(0, "p", 1), Output([4, 2], [{4: Row(-0.5)}], "stop", [Span("3", 0, 2)]))


def test_a_prompt_that_would_be_cut_is_refused() -> None:
    sampling = SamplingParams(temperature=1.0, max_new_tokens=6)
    refuse_overlong(Prompt("p", (), (1, 2, 3, 4)), sampling, 10)
    for tokens in ((1, 2, 3, 4, 5), ()):
        with pytest.raises(ValueError, match=r"prompt p has .* does not fit rollout\.max_model_len=10"):
            refuse_overlong(Prompt("p", (), tokens), sampling, 10)


async def test_an_update_that_does_not_drain_leaves_calls_running_and_ends_them_when_it_is_refused() -> None:
    gate, ended = ServingGate("rollout/0"), asyncio.Event()

    async def sampling() -> str:
        await ended.wait()
        return "tokens of both versions"

    async def call() -> str:
        async with gate.serving(5):
            return await gate.unless_refused(asyncio.ensure_future(sampling()), 5)

    good = asyncio.create_task(call())
    await asyncio.sleep(0)
    await gate.close(5, drain=False)
    assert not good.done() and gate.phase is Phase.UPDATING
    await gate.enter(Phase.SERVING)
    ended.set()
    assert await good == "tokens of both versions"

    ended.clear()
    bad = asyncio.create_task(call())
    await asyncio.sleep(0)
    await gate.close(5, drain=False)
    await gate.enter(Phase.REFUSED)
    with pytest.raises(WeightUpdateError, match="not known to be right"):
        await bad
    assert gate.in_flight == 0
