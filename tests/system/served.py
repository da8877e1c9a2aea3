"""A model folder in a new vLLM engine, beside transformers: both give the sampled tokens the same log-probs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray
import torch
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device, Precision, RolloutConfig, SyncConfig
from raylign.data.types import Prompt, RolloutGroup, SampleKey, SamplingParams
from raylign.rollout.interfaces import GenerationRequest
from raylign.rollout.worker import WorkerSpec, spawn_worker
from transformers import AutoModelForCausalLM, AutoTokenizer


def check_served(folder: Path) -> None:
    """Needs a Ray session."""
    prompt = Prompt("p", (), tuple(AutoTokenizer.from_pretrained(folder)("What is a river?")["input_ids"]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for completion in asyncio.run(_sample(folder, prompt)).completions:
        tokens = torch.tensor([[*prompt.token_ids, *completion.response_ids]])
        with torch.no_grad():
            table = model(tokens).logits[0, :-1].log_softmax(-1)
        own = table.gather(1, tokens[0, 1:, None])[len(prompt.token_ids) - 1 :, 0].tolist()
        assert completion.rollout_logprobs == pytest.approx(own, abs=1e-3)


async def _sample(folder: Path, prompt: Prompt) -> RolloutGroup:
    rollout = RolloutConfig(precision=Precision.float32, max_model_len=128, kv_cache_gb=0.1, threads_per_worker=1)
    worker = spawn_worker(
        WorkerSpec("rollout/0", str(folder), rollout, SyncConfig(), Device.cpu),
        options={"num_cpus": 0.5},
        env_vars=RoleEnv(Device.cpu, threads=1).variables(),
    )
    try:
        await worker.start(300)
        keys = tuple(SampleKey(0, prompt.prompt_id, k) for k in range(3))
        (handle,) = await worker.generate(
            [GenerationRequest(prompt, keys, SamplingParams(temperature=1.0, max_new_tokens=16, seed=3))]
        )
        return ray.get(handle.ref, timeout=60)
    finally:
        worker.kill()
