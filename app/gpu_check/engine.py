"""Stage C: an engine on one card serves what it is sent, agrees with the learner, and how fast both are. Needs vLLM."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import torch
from raylign.app.gpu_check.harness import Check, Measured, NotRun, needs_cuda
from raylign.app.gpu_check.kernels import scratch
from raylign.app.gpu_check.models import HALF_B, random_llama
from raylign.conf.schema import Device, RolloutConfig, SyncConfig
from raylign.data.types import Prompt, SampleKey, SamplingParams, TokenBatch
from raylign.rollout import environment
from raylign.rollout.fingerprint import dtype_name, tensor_digest
from raylign.rollout.interfaces import Canary, GenerationRequest, TensorSpec, VerifyReport, WeightManifest
from raylign.trainer.models.causal_lm import CausalLM
from safetensors.torch import save_file
from torch import Tensor, nn

VOCAB = 32_000
CONFIG = RolloutConfig(max_model_len=1024, gpu_memory_utilization=0.5, max_concurrent=256, timeout_s=300)
SYNC = SyncConfig(timeout_s=300, max_canary_gap=0.2)
SCORED = 64  # tokens of a canary


def checks() -> Iterator[Check]:
    """All of the stage; each starts an engine of its own."""
    yield Check("engine: publication verified tensor by tensor", published)
    yield Check("engine: a weight 1 % off is refused", planted)
    yield Check("engine: log-probs beside the learner's", noise)
    yield Check("engine: tokens a second", speed)


class Bench:
    """An engine and the learner's model on one card."""

    def __init__(self, device: torch.device, folder: Path) -> None:
        needs_cuda(device)
        environment.prepare(CONFIG, Device.cuda)
        from raylign.rollout.vllm_engine import VLLMEngine  # after the environment

        hf = random_llama(**HALF_B, layers=8, vocab=VOCAB).bfloat16()
        hf.config._attn_implementation = "eager"  # what a folder says is not ours
        hf.save_pretrained(folder)
        self.device, self.folder = device, folder
        self.loop = asyncio.new_event_loop()
        self.engine = VLLMEngine(str(folder), CONFIG, SYNC, device=Device.cuda)
        self.run(self.engine.start())
        hf.config._attn_implementation = "raylign_packed"
        self.model = CausalLM(hf).to(device)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """To its end, at most five minutes."""
        return self.loop.run_until_complete(asyncio.wait_for(work, 300))

    def logprobs(self, ids: list[int]) -> list[float]:
        """The learner's, of each token after the first."""
        tokens = TokenBatch.from_sequences([ids], [[False] + [True] * (len(ids) - 1)])
        moved = TokenBatch(*(t.to(self.device) for t in (tokens.input_ids, tokens.cu_seqlens, tokens.response_mask)))
        with torch.no_grad():
            return self.model(moved, temperature=1.0).logprobs[1:].tolist()

    def publish(self, version: int, sent: dict[str, Tensor] | None = None) -> VerifyReport:
        """Announce the learner's weights, send `sent` or the same, through a file as the object store does."""
        truth = {name: p.detach() for name, p in self.model.hf.named_parameters()}
        specs = tuple(TensorSpec(n, tuple(t.shape), dtype_name(t.dtype), tensor_digest(t)) for n, t in truth.items())
        ids = [(7 * i + 3) % VOCAB for i in range(SCORED)]
        self.run(self.engine.begin_update(WeightManifest(version, specs, tied_embeddings=True)))
        path = self.folder / "bucket.safetensors"
        save_file({n: t.cpu().contiguous() for n, t in (sent or truth).items()}, path)
        self.run(self.engine.load_bucket(str(path)))
        path.unlink()
        return self.run(self.engine.finish_update([Canary(tuple(ids), tuple(self.logprobs(ids)))]))

    def move(self) -> None:
        """A step of training: every weight moves a little."""
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in self.model.parameters():
                nn.Parameter.add_(parameter, 0.02 * torch.randn_like(parameter) * parameter.float().std().nan_to_num(1))

    def close(self) -> None:
        """End the engine."""
        self.run(self.engine.stop())
        self.loop.close()


def published(device: torch.device) -> Measured:
    """Seconds of a whole publication, every tensor verified on the card."""
    with scratch() as folder:
        bench = Bench(device, Path(folder))
        try:
            bench.move()
            started = time.perf_counter()
            report = bench.publish(1)
            seconds = time.perf_counter() - started
            bad = [*report.mismatched, *report.missing]
            if bad or not report.passed(SYNC.max_canary_gap):
                return Measured(float(len(bad)), "tensors differ", -1.0, note=f"{bad[:4]}, gap {report.canary_gap:.3g}")
            return Measured(seconds, "s", note=f"{len(report.digests)} tensors, canary gap {report.canary_gap:.3g}")
        finally:
            bench.close()


def planted(device: torch.device) -> Measured:
    """Tensors named when one of them was scaled by 1.01 on the way."""
    with scratch() as folder:
        bench = Bench(device, Path(folder))
        try:
            bench.move()
            sent = {name: p.detach().clone() for name, p in bench.model.hf.named_parameters()}
            name = "model.layers.3.self_attn.v_proj.weight"
            sent[name] *= 1.01
            report = bench.publish(1, sent)
            return Measured(float(report.mismatched == (name,)), "named", 1.0, at_least=True)
        finally:
            bench.close()


def noise(device: torch.device) -> Measured:
    """Mean difference of sampled tokens' log-probs, nats; the note has the 99th percentile and the largest."""
    with scratch() as folder:
        bench = Bench(device, Path(folder))
        try:
            group = bench.run(bench.engine.generate([_request(64, 64)]))[0]
            gaps = [
                abs(a - b)
                for c in group.completions
                for a, b in zip(
                    c.rollout_logprobs, bench.logprobs([*group.prompt.token_ids, *c.response_ids])[31:], strict=True
                )
            ]
        finally:
            bench.close()
    if not gaps:
        raise NotRun("the engine sampled nothing")
    ordered = sorted(gaps)
    note = f"p99 {ordered[int(0.99 * len(ordered))]:.3g}, max {ordered[-1]:.3g}, {len(gaps)} tokens"
    return Measured(sum(gaps) / len(gaps), "nats", 0.05, note=note)


def speed(device: torch.device) -> Measured:
    """Tokens a second at 256 answers of 512 tokens, the second time."""
    with scratch() as folder:
        bench = Bench(device, Path(folder))
        try:
            bench.run(bench.engine.generate([_request(256, 16)]))
            started = time.perf_counter()
            group = bench.run(bench.engine.generate([_request(256, 512)]))[0]
            tokens = sum(len(c.response_ids) for c in group.completions)
            return Measured(tokens / (time.perf_counter() - started), "tokens/s")
        finally:
            bench.close()


def _request(answers: int, tokens: int) -> GenerationRequest:
    prompt = Prompt("p", (), tuple((11 * i + 5) % VOCAB for i in range(32)))
    keys = tuple(SampleKey(0, "p", k) for k in range(answers))
    return GenerationRequest(prompt, keys, SamplingParams(temperature=1.0, max_new_tokens=tokens, seed=1))
