"""Rollout workers as Ray actors: tokens as sampled, publication through the object store, a worker killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from raylign.cluster.session import session
from raylign.conf.schema import ClusterConfig, Device, Precision, RolloutConfig, SyncConfig
from raylign.data.sample_model import tiny_model
from raylign.data.types import Completion, FinishReason, Prompt, RolloutGroup, SamplingParams
from raylign.rollout.environment import engine_environment
from raylign.rollout.pool import RolloutPool
from raylign.rollout.worker import RayWorkerHandle, WorkerSpec, spawn_worker
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.publish import WeightPublisher
from transformers import AutoTokenizer

from tests.system.weight_source import TOKENS, ChangingModel

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

CONFIG = RolloutConfig(
    precision=Precision.float32,
    max_model_len=256,
    kv_cache_gb=0.25,
    max_concurrent=16,
    timeout_s=120,
    threads_per_worker=1,
)
SYNC = SyncConfig(max_canary_gap=1e-3, timeout_s=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tied", tie=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with session(ClusterConfig(object_store_gb=0.2), num_cpus=2):
        yield


@pytest.fixture(scope="module")
def workers(folder: Path, cluster: None) -> list[RayWorkerHandle]:
    env = engine_environment(CONFIG, Device.cpu)
    specs = [WorkerSpec(f"rollout/{i}", str(folder), CONFIG, SYNC, Device.cpu) for i in range(3)]
    handles = [spawn_worker(spec, options={"num_cpus": 0.5}, env_vars=env) for spec in specs]

    async def start() -> None:
        await asyncio.gather(*(handle.start(300) for handle in handles))

    asyncio.run(start())
    return handles


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", (), (*TOKENS, 20 + i)) for i in range(count)]


def with_long_ones(count: int) -> list[Prompt]:
    """Every second one longer than two blocks of the engine's cache, which its samples share."""
    long = (*TOKENS * 7, 99)
    return [replace(p, token_ids=(*long, *p.token_ids)) if i % 2 else p for i, p in enumerate(prompts(count))]


async def _publish_and_sample(learner: ChangingModel, workers: list[RayWorkerHandle]) -> None:
    pool = RolloutPool(workers, max_concurrent=16, timeout_s=120)
    publisher = WeightPublisher(learner, pool.members, timeout_s=60, canary_limit=CanaryLimit(SYNC.max_canary_gap))
    for version, temperature in ((1, 0.7), (2, 1.0), (3, 1.3)):
        learner.train()
        published = await publisher.publish(version)
        assert published.verified_workers == 3 and published.canary_gap < 1e-3
        sampling = SamplingParams(temperature=temperature, max_new_tokens=24, seed=11)
        handles = await pool.generate(with_long_ones(6), epoch=0, samples_per_prompt=3, sampling=sampling)
        groups: list[RolloutGroup] = ray.get([handle.ref for handle in handles], timeout=60)
        assert [group.prompt.prompt_id for group in groups] == [f"p{i}" for i in range(6)]
        for handle, group in zip(handles, groups, strict=True):
            assert tuple(meta.key for meta in handle.metas) == tuple(c.key for c in group.completions)
            for meta, completion in zip(handle.metas, group.completions, strict=True):
                assert (completion.min_policy_version, completion.max_policy_version) == (version, version)
                assert meta.response_tokens == len(completion.response_ids) == len(completion.rollout_logprobs)
                full = learner.logprobs((*group.prompt.token_ids, *completion.response_ids), temperature)
                truth = full[len(group.prompt.token_ids) - 1 :]
                assert completion.rollout_logprobs == pytest.approx(truth, abs=1e-3)
        again = await pool.generate(with_long_ones(6), epoch=0, samples_per_prompt=3, sampling=sampling)
        twins: list[RolloutGroup] = ray.get([handle.ref for handle in again], timeout=60)
        firsts = [completion.response_ids for group in groups for completion in group.completions]
        assert [completion.response_ids for group in twins for completion in group.completions] == firsts
        assert len(set(firsts)) == len(firsts)  # every sample has a seed of its own


async def _end_token_is_part_of_the_response(learner: ChangingModel, workers: list[RayWorkerHandle]) -> None:
    """With an embedding that favours the end token, responses stop; the token is there, with its log-prob."""
    end = learner.model.generation_config.eos_token_id
    with torch.no_grad():
        learner.model.model.embed_tokens.weight[end] *= 4
    pool = RolloutPool(workers, max_concurrent=16, timeout_s=120)
    await WeightPublisher(learner, pool.members, timeout_s=60, canary_limit=CanaryLimit(1e-3)).publish(4)
    sampling = SamplingParams(temperature=1.3, max_new_tokens=60, seed=3)
    handles = await pool.generate(prompts(8), epoch=1, samples_per_prompt=4, sampling=sampling)
    groups: list[RolloutGroup] = ray.get([handle.ref for handle in handles], timeout=60)
    completions = [completion for group in groups for completion in group.completions]
    stopped = [c for c in completions if c.finish_reason is FinishReason.STOP]
    assert stopped and all(c.response_ids[-1] == end and end not in c.response_ids[:-1] for c in stopped)
    cut = [c for c in completions if c.finish_reason is FinishReason.LENGTH]
    assert all(len(c.response_ids) == 60 and end not in c.response_ids for c in cut)
    own = tuple(stopped[0].response_ids[:2]) if len(stopped[0].response_ids) > 2 else (7, 9)
    handles = await pool.generate(
        prompts(8), epoch=1, samples_per_prompt=4, sampling=replace(sampling, stop_token_ids=own)
    )
    again: list[RolloutGroup] = ray.get([handle.ref for handle in handles], timeout=60)
    for before, after in zip(completions, (c for group in again for c in group.completions), strict=True):
        at = next((i for i, token in enumerate(before.response_ids) if token in (*own, end)), None)
        expected = before.response_ids if at is None else before.response_ids[: at + 1]
        assert after.response_ids == expected and len(after.rollout_logprobs) == len(expected)
        assert after.finish_reason is (FinishReason.LENGTH if at is None else FinishReason.STOP)


async def _stops_cut_what_is_sampled_without_them(
    learner: ChangingModel, workers: list[RayWorkerHandle], folder: Path
) -> None:
    """A stop changes no draw: what is sampled is the beginning of the same answer without stops, through the stop."""
    pool = RolloutPool(workers, max_concurrent=16, timeout_s=120)
    await WeightPublisher(learner, pool.members, timeout_s=60, canary_limit=CanaryLimit(1e-3)).publish(5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = SamplingParams(temperature=1.0, max_new_tokens=40, seed=9)

    async def drawn(sampling: SamplingParams) -> list[Completion]:
        handles = await pool.generate(prompts(4), epoch=1, samples_per_prompt=2, sampling=sampling)
        groups: list[RolloutGroup] = ray.get([handle.ref for handle in handles], timeout=60)
        return [completion for group in groups for completion in group.completions]

    whole = await drawn(plain)
    token = next(i for c in whole for i in c.response_ids[5:20] if len(tokenizer.decode([i]).strip()) > 1)
    text = tokenizer.decode([token])
    by_text = await drawn(replace(plain, stop=(text,)))
    by_token = await drawn(replace(plain, stop_token_ids=(token,)))
    shorter = 0
    for full, cut, ended in zip(whole, by_text, by_token, strict=True):
        length = next(
            (n for n in range(1, 41) if text in tokenizer.decode(full.response_ids[:n])), len(full.response_ids)
        )
        assert cut.response_ids == full.response_ids[:length]
        assert cut.rollout_logprobs == pytest.approx(full.rollout_logprobs[:length], abs=1e-5)
        if text in tokenizer.decode(full.response_ids):
            assert cut.finish_reason is FinishReason.STOP and cut.text.endswith(text)
            shorter += len(cut.response_ids) < len(full.response_ids)
        else:
            assert cut.finish_reason is full.finish_reason and cut.text == full.text
        ids = full.response_ids
        assert ended.response_ids == (ids[: ids.index(token) + 1] if token in ids else ids)
        assert (ended.finish_reason is FinishReason.STOP) == (token in ids or full.finish_reason is FinishReason.STOP)
        if token in ids:
            assert ended.text == tokenizer.decode(ended.response_ids[:-1], skip_special_tokens=True)
    assert shorter


async def _stopped_engine_costs_nothing(learner: ChangingModel, workers: list[RayWorkerHandle]) -> None:
    """R17: the process in which the core runs is stopped; a health check finds it, long before the deadline."""
    core = ray.get(workers[2].actor.__ray_call__.remote(lambda self: os.getpid()), timeout=30)
    hasty = RayWorkerHandle("rollout/2", workers[2].actor, generate_s=120, update_s=60, ping_s=3.0)
    pool = RolloutPool([*workers[:2], hasty], max_concurrent=8, timeout_s=120, probe_every_s=1.0)
    publisher = WeightPublisher(learner, pool.members, timeout_s=60, canary_limit=CanaryLimit(1e-3))
    await publisher.publish(6)
    sampling = SamplingParams(temperature=1.0, max_new_tokens=200, seed=6)
    os.kill(core, signal.SIGSTOP)
    started = time.monotonic()
    handles = await pool.generate(prompts(12), epoch=3, samples_per_prompt=2, sampling=sampling)
    took = time.monotonic() - started
    groups: list[RolloutGroup] = ray.get([handle.ref for handle in handles], timeout=60)
    assert [group.prompt.prompt_id for group in groups] == [f"p{i}" for i in range(12)]
    assert Path(f"/proc/{core}/stat").read_text().rpartition(")")[2].split()[0] == "T", "the victim was not stopped"
    counts = pool.counts()
    assert counts.deaths == 1 and counts.requeued_prompts and took < 60, (counts, took)
    [dead] = pool.take_dead()
    assert dead.name == "rollout/2" and "no answer within 3 s" in dead.reason
    await dead.stop()
    async with asyncio.timeout(30):
        while Path(f"/proc/{core}").exists():  # a stopped process ends by SIGKILL alone
            await asyncio.sleep(0.1)


async def _killed_worker_costs_nothing(learner: ChangingModel, workers: list[RayWorkerHandle]) -> None:
    pool = RolloutPool(workers[:2], max_concurrent=8, timeout_s=120)
    publisher = WeightPublisher(learner, pool.members, timeout_s=60, canary_limit=CanaryLimit(1e-3))
    await publisher.publish(7)
    sampling = SamplingParams(temperature=1.0, max_new_tokens=200, seed=5)
    step = asyncio.create_task(pool.generate(prompts(10), epoch=2, samples_per_prompt=2, sampling=sampling))
    async with asyncio.timeout(10):
        while not pool.members()[0].outstanding_samples:
            await asyncio.sleep(0.01)
    ray.kill(workers[0].actor)
    handles = await step
    groups: list[RolloutGroup] = ray.get([handle.ref for handle in handles], timeout=60)  # finished ones outlive it
    assert [group.prompt.prompt_id for group in groups] == [f"p{i}" for i in range(10)]
    assert pool.counts().deaths == 1 and [member.name for member in pool.members()] == ["rollout/1"]
    assert (await publisher.publish(8)).verified_workers == 1
    await workers[1].stop()


def test_publish_and_sample_then_stop_tokens_then_a_kill(workers: list[RayWorkerHandle], folder: Path) -> None:
    """One test because the workers go through it together; the parts are named functions."""
    asyncio.run(_publish_and_sample(ChangingModel(folder), workers))
    asyncio.run(_end_token_is_part_of_the_response(ChangingModel(folder), workers))
    asyncio.run(_stops_cut_what_is_sampled_without_them(ChangingModel(folder), workers, folder))
    asyncio.run(_stopped_engine_costs_nothing(ChangingModel(folder), workers))
    asyncio.run(_killed_worker_costs_nothing(ChangingModel(folder), workers))
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("raylign-")]
