"""Where the seconds of a weight publication go, and what the digest costs beside the one it replaced.

    python benchmarks/publication.py --model FOLDER [--versions 3] [--json out.json]

One real vLLM engine on this machine's CPU is sent the folder's weights version by version: digest and encode on the
learner's side, load, read back and canary on the engine's. Ratios within a run hold on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import xxhash
from raylign.cluster.weights import encode_bucket, shared_memory_file
from raylign.conf.schema import Device, Precision, RolloutConfig, SyncConfig
from raylign.rollout import environment
from raylign.rollout.fingerprint import DigestKind, dtype_name, tensor_digest
from raylign.rollout.interfaces import Canary, TensorSpec, WeightManifest
from torch import Tensor
from transformers import AutoModelForCausalLM

CONFIG = RolloutConfig(precision=Precision.float32, max_model_len=256, kv_cache_gb=0.25, max_concurrent=8)
SYNC = SyncConfig(max_canary_gap=1e-3)
BUCKET_BYTES = 256 << 20


def earlier_digest(tensor: Tensor) -> str:
    """As it was before: one canonical copy of the whole tensor, then its hash. The same digest."""
    plain = tensor.detach().cpu() + 0.0
    if plain.dtype == torch.bfloat16:
        plain.masked_fill_(plain.abs() < torch.finfo(torch.bfloat16).tiny, 0.0)
    hasher = xxhash.xxh3_128(f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)} ".encode())
    hasher.update(plain.contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def digests(weights: dict[str, Tensor], repeat: int) -> dict[str, float]:
    """Median seconds over all weights, the forms in turn so that a busy moment meets each of them."""
    forms: dict[str, Callable[[Tensor], str]] = {
        "digest, as it was": earlier_digest,
        "digest": tensor_digest,
        "digest, additive": lambda t: tensor_digest(t, DigestKind.ADDITIVE),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeat):
        for name, form in forms.items():
            started = time.perf_counter()
            for tensor in weights.values():
                form(tensor)
            seconds[name].append(time.perf_counter() - started)
    assert all(tensor_digest(t) == earlier_digest(t) for t in weights.values())
    return {name: statistics.median(values) for name, values in seconds.items()}


def publications(folder: Path, weights: dict[str, Tensor], versions: int) -> dict[str, float]:
    """Median seconds of each phase on one engine, after a first version that warms it up."""
    environment.prepare(CONFIG, Device.cpu)
    from raylign.rollout.vllm_engine import VLLMEngine  # after the environment

    engine, loop = VLLMEngine(str(folder), CONFIG, SYNC), asyncio.new_event_loop()
    loop.run_until_complete(engine.start())
    phases: dict[str, list[float]] = {}
    try:
        for version in range(1, versions + 2):
            clock = _Clock()
            specs = tuple(
                TensorSpec(n, tuple(t.shape), dtype_name(t.dtype), tensor_digest(t)) for n, t in weights.items()
            )
            clock.lap("learner: digest")
            buckets = [encode_bucket(bucket) for bucket in _buckets(weights)]
            clock.lap("learner: encode")
            loop.run_until_complete(engine.begin_update(WeightManifest(version, specs, tied_embeddings=True)))
            clock.lap("engine: pause")
            for payload in buckets:
                with shared_memory_file(payload) as path:
                    loop.run_until_complete(engine.load_bucket(path))
            clock.lap("engine: load")
            report = loop.run_until_complete(engine.finish_update([Canary((1, 2), (0.0,))]))
            assert not report.mismatched and not report.missing, report
            clock.lap("engine: read back and verify")
            if version > 1:
                for name, seconds in clock.laps.items():
                    phases.setdefault(name, []).append(seconds)
    finally:
        loop.run_until_complete(engine.stop())
    return {name: statistics.median(values) for name, values in phases.items()}


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def _buckets(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    buckets: list[dict[str, Tensor]] = [{}]
    for name, tensor in weights.items():
        if sum(t.nbytes for t in buckets[-1].values()) + tensor.nbytes > BUCKET_BYTES:
            buckets.append({})
        buckets[-1][name] = tensor
    return buckets


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--versions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--digests-only", action="store_true")
    given = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = {f"float32 {n}": s for n, s in digests(weights, given.versions).items()}
    found |= {
        f"bfloat16 {n}": s for n, s in digests({n: t.bfloat16() for n, t in weights.items()}, given.versions).items()
    }
    if not given.digests_only:
        found |= publications(given.model, weights, given.versions)
    size = sum(t.nbytes for t in weights.values())
    for name, seconds in found.items():
        print(f"{name:<36} {seconds:8.3f} s  {size / (2 if name.startswith('bf') else 1) / seconds / 1e9:7.2f} GB/s")
    if given.json:
        given.json.write_text(json.dumps({"bytes": size, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
