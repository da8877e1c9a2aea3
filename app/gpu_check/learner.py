"""Stage B: a learner on one card: every way of sharding trains as plain AdamW does, resumes, and fits the plan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from raylign.app.gpu_check.harness import Check, Measured, NotRun, needs_cuda
from raylign.app.gpu_check.kernels import scratch
from raylign.app.gpu_check.models import HALF_B, random_llama
from raylign.conf.schema import Device, LearnerConfig, LoraConfig, Offload, OptimConfig, Precision
from raylign.data.types import Denominators, PolicyExperience, RankShard, TokenBatch, UpdateWindow
from raylign.trainer.algorithms.base import LossOutput
from raylign.trainer.engine.base import Engine
from raylign.trainer.engine.rendezvous import Rendezvous, listen
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner
from raylign.trainer.memory_plan import learner_use, shape_of
from raylign.trainer.models.adapters import add_adapters, start_adapters
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.lean_layers import lean_layers
from raylign.trainer.time_plan import card_named, training_flops
from torch import nn
from transformers import LlamaForCausalLM

STEPS = 10
OPTIM = OptimConfig(lr=1e-4, max_grad_norm=1.0)
SPEED_TOKENS = 16_384


def checks() -> Iterator[Check]:
    """All of the stage."""
    for stage, lora, checkpointing in product((0, 1, 2, 3), (False, True), (False, True)):
        name = f"ZeRO-{stage}" + (", adapters" if lora else "") + (", recomputed" if checkpointing else "")
        config = _config(stage, lora=lora, checkpointing=checkpointing)
        yield Check(f"{name}: ten steps as plain AdamW", partial(trains_alike, config=config))
        yield Check(f"{name}: resumes", partial(resumes, config=config))
    for stage in (1, 2, 3):
        config = replace(_config(stage), offload_optimizer=Offload.cpu)
        yield Check(f"ZeRO-{stage}, offloaded: ten steps as plain AdamW", partial(trains_alike, config=config))
        yield Check(f"ZeRO-{stage}, offloaded: resumes", partial(resumes, config=config))
    yield Check("0.5B: peak memory against the plan", peak_memory)
    yield Check("0.5B: MFU of SFT", training_speed)


def _config(stage: int, *, lora: bool = False, checkpointing: bool = False) -> LearnerConfig:
    return LearnerConfig(
        precision=Precision.bfloat16,
        zero_stage=stage,
        optim=OPTIM,
        gradient_checkpointing=checkpointing,
        lora=LoraConfig(rank=8) if lora else LoraConfig(),
    )


def trains_alike(device: torch.device, *, config: LearnerConfig) -> Measured:
    """Largest relative difference of ten losses to plain AdamW in float32 on the same device."""
    truth = _losses(TorchEngine(_model(replace(config, precision=Precision.float32), _small(), device), OPTIM,
                                total_steps=STEPS), 0, STEPS)  # fmt: skip
    ours = _losses(_zero(config, _small(), device), 0, STEPS)
    return Measured(max(abs(a - b) / abs(b) for a, b in zip(ours, truth, strict=True)), "relative", 1e-2)


def resumes(device: torch.device, *, config: LearnerConfig) -> Measured:
    """Largest relative difference of three losses after a saved state to those without a break."""
    with scratch() as folder:
        engine = _zero(config, _small(), device)
        _losses(engine, 0, 4)
        engine.save_state(Path(folder))
        straight = _losses(engine, 4, 7)
        again = _zero(config, _small(), device)
        again.load_state(Path(folder))
        resumed = _losses(again, 4, 7)
    return Measured(max(abs(a - b) / abs(b) for a, b in zip(resumed, straight, strict=True)), "relative", 1e-3)


def peak_memory(device: torch.device) -> Measured:
    """Measured peak of a step over the plan's estimate, without CUDA's context."""
    needs_cuda(device)
    config = replace(_config(2, checkpointing=True), micro_batch_tokens=SPEED_TOKENS)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    engine = _zero(config, _half_b(), device)
    planned = learner_use("policy", shape_of(engine.module.get_submodule("hf"), scalar=False), config)
    Learner(engine).update(_speed_shard(), _objective)
    estimate = planned.total - planned.parts["context"]
    peak = torch.cuda.max_memory_allocated(device)
    note = f"peak {peak / 1e9:.1f} GB, planned {estimate / 1e9:.1f} GB"
    return Measured(abs(peak / estimate - 1), "off by", 0.15, note=note)


def training_speed(device: torch.device) -> Measured:
    """Share of the card's peak arithmetic, over five steps after two."""
    needs_cuda(device)
    card = card_named(torch.cuda.get_device_name(device))
    if card is None:
        raise NotRun(f"no peak known for {torch.cuda.get_device_name(device)}")
    engine = _zero(replace(_config(2), micro_batch_tokens=SPEED_TOKENS), _half_b(), device)
    learner, shape = Learner(engine), shape_of(engine.module.get_submodule("hf"), scalar=False)
    for _ in range(2):
        learner.update(_speed_shard(), _objective)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(5):
        learner.update(_speed_shard(), _objective)
    torch.cuda.synchronize(device)
    rate = 5 * SPEED_TOKENS / (time.perf_counter() - started)
    share = training_flops(shape, rate, recompute=False) / card.flops
    return Measured(share, "of the peak", 0.35, at_least=True, note=f"{rate:,.0f} tokens/s")


def _half_b() -> LlamaForCausalLM:
    return random_llama(**HALF_B, layers=24, vocab=151_936)


def _small() -> LlamaForCausalLM:
    return random_llama(hidden=256, intermediate=512, layers=2, heads=8, kv_heads=2, vocab=512)


def _model(config: LearnerConfig, hf: LlamaForCausalLM, device: torch.device) -> CausalLM:
    if config.precision is Precision.bfloat16:
        hf = hf.bfloat16()
    hf.config.use_cache = False
    lean_layers(hf, gated=not config.gradient_checkpointing)
    if config.gradient_checkpointing:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = CausalLM(hf.train())
    if config.lora.rank:
        add_adapters(model.hf, config.lora)
        start_adapters(model.hf, 1)
    return model if config.precision is Precision.bfloat16 else model.to(device)


def _zero(config: LearnerConfig, hf: LlamaForCausalLM, device: torch.device) -> Engine:
    from raylign.trainer.engine.zero import ZeroEngine

    rendezvous = Rendezvous(0, 1, "127.0.0.1", listen("127.0.0.1"), timeout_s=120)
    return ZeroEngine(_model(config, hf, device), config, rendezvous, device=Device(device.type), total_steps=STEPS)


def _losses(engine: Engine, first: int, last: int) -> list[float]:
    learner = Learner(engine)
    return [learner.update(_shard(step), _objective).metrics["loss"] for step in range(first, last)]


def _objective(model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
    outputs = model(batch.tokens, temperature=1.0)
    return LossOutput(-(outputs.logprobs * batch.tokens.response_mask).sum() / denominators.tokens, {})


def _shard(step: int) -> RankShard[PolicyExperience]:
    draw = torch.Generator().manual_seed(step)
    return _of([torch.randint(0, 500, (n,), generator=draw).tolist() for n in (40, 90, 12, 64)])


def _speed_shard() -> RankShard[PolicyExperience]:
    draw = torch.Generator().manual_seed(0)
    return _of([torch.randint(0, 150_000, (2048,), generator=draw).tolist() for _ in range(SPEED_TOKENS // 2048)])


def _of(rows: list[list[int]]) -> RankShard[PolicyExperience]:
    tokens = TokenBatch.from_sequences(rows, [[False] + [True] * (len(row) - 1) for row in rows])
    blank = torch.zeros(tokens.num_tokens)
    batch = PolicyExperience(tokens, blank, blank, None, blank)
    return RankShard((UpdateWindow((batch,), Denominators(float(tokens.response_mask.sum()), float(len(rows)))),))
