"""Where the seconds of a weight publication go, and what the digest costs beside the one it replaced.

    python benchmarks/publication.py --model FOLDER [--versions 3] [--json out.json]

One real vLLM engine on this machine's CPU is sent the folder's weights version by version through the publisher, the
object store and the worker's class that a run uses, each process with a role's environment; once with every column of
packed layers read back, once with `sync.verify_columns` as it is by default. Ratios hold on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ray
import torch
import xxhash
from raylign.cluster.runtime_env import RoleEnv
from raylign.cluster.weights import put_bucket
from raylign.conf.schema import Device, Precision, RolloutConfig, SyncConfig
from raylign.rollout.fingerprint import DigestKind, dtype_name, tensor_digest
from raylign.rollout.interfaces import Canary, Ref, TensorSpec, VerifyReport, WeightManifest
from raylign.rollout.worker import RolloutWorker, WorkerSpec
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.publish import WeightPublisher
from torch import Tensor
from transformers import AutoModelForCausalLM

CONFIG = RolloutConfig(precision=Precision.float32, max_model_len=256, kv_cache_gb=0.25, max_concurrent=8)
BUCKET_BYTES = SyncConfig().bucket_mb << 20


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


class _Source:
    """The learner's side, as rank 0 has it: digests, then buckets into the object store."""

    def __init__(self, weights: dict[str, Tensor], clock: _Clock) -> None:
        self._weights, self._clock = weights, clock
        self._refs: list[Ref] = []

    async def manifest(self, version: int) -> WeightManifest:
        self._refs = []
        specs = [TensorSpec(n, tuple(t.shape), dtype_name(t.dtype), tensor_digest(t)) for n, t in self._weights.items()]
        self._clock.lap("learner: digest")
        self._refs = [Ref(put_bucket({n: t.clone() for n, t in bucket.items()})) for bucket in _buckets(self._weights)]
        self._clock.lap("learner: copy, object store")
        return WeightManifest(version, tuple(specs), tied_embeddings=True)

    async def canaries(self) -> list[Canary]:
        return [Canary((1, 2), (0.0,))]

    async def buckets(self) -> list[Ref]:
        self._clock.lap("engine: pause")
        return self._refs


class _Sink:
    """One worker, its actor's class called in this process."""

    name = "rollout/0"

    def __init__(self, worker: RolloutWorker, clock: _Clock) -> None:
        self._worker, self._clock = worker, clock
        self.begin_update, self.resume = worker.begin_update, worker.resume

    async def load_bucket(self, bucket: Ref) -> None:
        await self._worker.load_bucket(ray.get(bucket, timeout=60))

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        self._clock.lap("engine: load")
        report = await self._worker.finish_update(canaries)
        self._clock.lap("engine: read back, canaries")
        return report

    def quarantine(self, reason: str) -> None:
        raise SystemExit(reason)

    die = quarantine


def publications(folder: Path, weights: dict[str, Tensor], versions: int, columns: int) -> dict[str, float]:
    """Median seconds of each phase on one engine, after a first version that warms it up."""
    sync = SyncConfig(max_canary_gap=1e9, verify_columns=columns)
    worker, loop = (
        RolloutWorker(WorkerSpec("rollout/0", str(folder), CONFIG, sync, Device.cpu)),
        asyncio.new_event_loop(),
    )
    loop.run_until_complete(worker.start())
    phases: dict[str, list[float]] = {}
    try:
        for version in range(1, versions + 2):
            clock = _Clock()
            publisher = WeightPublisher(
                _Source(weights, clock), lambda c=clock: [_Sink(worker, c)], timeout_s=120, canary_limit=CanaryLimit(1e9)
            )
            result = loop.run_until_complete(publisher.publish(version))
            clock.laps["publication"] = result.seconds
            if version > 1:
                for name, seconds in clock.laps.items():
                    phases.setdefault(name, []).append(seconds)
    finally:
        loop.run_until_complete(worker.stop())
    return {f"{name} ({columns or 'all'} columns)": statistics.median(values) for name, values in phases.items()}


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
    if "LD_PRELOAD" not in os.environ:  # as a role's process is: its threads, its allocator
        role = RoleEnv(Device.cpu, threads=os.cpu_count() or 1, keeps_pages=True).variables()
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | role)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = {f"float32 {n}": s for n, s in digests(weights, given.versions).items()}
    found |= {
        f"bfloat16 {n}": s for n, s in digests({n: t.bfloat16() for n, t in weights.items()}, given.versions).items()
    }
    if not given.digests_only:
        ray.init(num_cpus=2, object_store_memory=2 << 30, include_dashboard=False, log_to_driver=False)
        for columns in (0, SyncConfig().verify_columns):
            found |= publications(given.model, weights, given.versions, columns)
        ray.shutdown()
    size = sum(t.nbytes for t in weights.values())
    for name, seconds in found.items():
        print(f"{name:<44} {seconds:8.3f} s  {size / (2 if name.startswith('bf') else 1) / seconds / 1e9:7.2f} GB/s")
    if given.json:
        given.json.write_text(json.dumps({"bytes": size, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
