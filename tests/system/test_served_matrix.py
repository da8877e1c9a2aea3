"""Architectures that vLLM serves on CPU: after a publication an engine's log-probs are the learner's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from raylign.cluster.session import session
from raylign.conf.schema import ClusterConfig, Device, Precision, RolloutConfig, SyncConfig
from raylign.data.types import Prompt, RolloutGroup, SampleKey, SamplingParams
from raylign.rollout.environment import engine_environment
from raylign.rollout.interfaces import GenerationRequest
from raylign.rollout.pool import RolloutPool
from raylign.rollout.worker import RayWorkerHandle, WorkerSpec, spawn_worker
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.publish import WeightPublisher
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.system.served_kinds import SERVED
from tests.system.weight_source import TOKENS, ChangingModel
from tests.unit.trainer.models.model_matrix import MATRIX
from tests.unit.trainer.models.model_matrix import SERVED as ON_THE_PAGE

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(900)]

CONFIG = RolloutConfig(
    precision=Precision.float32,
    max_model_len=128,
    kv_cache_gb=0.1,
    max_concurrent=8,
    timeout_s=120,
    threads_per_worker=1,
)
SYNC = SyncConfig(max_canary_gap=2e-3, timeout_s=120)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with session(ClusterConfig(object_store_gb=0.2), num_cpus=2):
        yield


def write(folder: Path, like: Path, kind: str, fields: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields)).float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


async def published_and_sampled(worker: RayWorkerHandle, source: ChangingModel) -> RolloutGroup:
    await worker.start(400)
    pool = RolloutPool([worker], max_concurrent=8, timeout_s=120)
    publisher = WeightPublisher(source, pool.members, timeout_s=120, canary_limit=CanaryLimit(SYNC.max_canary_gap))
    published = await publisher.publish(1)
    assert published.verified_workers == 1
    prompt = Prompt("p", (), TOKENS)
    keys = tuple(SampleKey(0, "p", k) for k in range(3))
    request = GenerationRequest(prompt, keys, SamplingParams(temperature=1.0, max_new_tokens=24, seed=3))
    (handle,) = await worker.generate([request])
    group: RolloutGroup = ray.get(handle.ref, timeout=60)
    return group


def test_the_page_names_what_is_tried_here() -> None:
    assert set(ON_THE_PAGE) == set(SERVED) <= {tried.name for tried in MATRIX}


@pytest.mark.parametrize("name", SERVED)
def test_served_after_an_update_is_the_learner(name: str, cluster: None, tiny_model_dir: Path, tmp_path: Path) -> None:
    kind, fields = SERVED[name]
    folder = write(tmp_path / "model", tiny_model_dir, kind, fields)
    source = ChangingModel(folder)
    source.train()
    worker = spawn_worker(
        WorkerSpec("rollout/0", str(folder), CONFIG, SYNC, Device.cpu),
        options={"num_cpus": 0.5},
        env_vars=engine_environment(CONFIG, Device.cpu),
    )
    try:
        group = asyncio.run(published_and_sampled(worker, source))
    finally:
        worker.kill()
    for one in group.completions:
        own = source.logprobs([*TOKENS, *one.response_ids])[len(TOKENS) - 1 :]
        assert one.rollout_logprobs == pytest.approx(own, abs=2e-3)
