"""Where the seconds of a weight publication go, and what the digest costs beside the one it replaced.

    python benchmarks/publication.py --model FOLDER [--versions 3] [--json out.json]

One real vLLM engine on this machine's CPU is sent the folder's weights version by version through the publisher, the
object store and the worker's class that a run uses, in a role's environment; once with every column of packed layers
read back, once with `sync.verify_columns` as it is by default. Versions go by turns as they did before (a clone of each
tensor, a file in shared memory for the engine), as they do now, and by broadcast over gloo, whose members are threads
here. First comes a table by transport: median, fastest and slowest version, rate, and the copies of each byte. Ratios
hold on a busy machine, processor seconds better than seconds.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
import torch
import xxhash
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device, OptimConfig, Precision, RolloutConfig, SyncConfig
from raylign.rollout.fingerprint import DigestKind, dtype_name, tensor_digest
from raylign.rollout.interfaces import Canary, Ref, TransferLink, VerifyReport, WeightManifest
from raylign.rollout.worker import RolloutWorker, WorkerSpec
from raylign.trainer.engine.buckets import weights_to_buckets
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.publish import WeightPublisher
from raylign.trainer.loops.transport import Broadcast
from raylign.trainer.models.loading import load_causal_lm
from raylign.trainer.workers.learner_worker import staged
from raylign.trainer.workers.transfer import WeightTransfer
from torch import Tensor

CONFIG = RolloutConfig(precision=Precision.float32, max_model_len=256, kv_cache_gb=0.25, max_concurrent=8)
BUCKET_BYTES = SyncConfig().bucket_mb << 20
WHOLE = "whole publication"
COPIES = {
    "before": "5: clone, object store, file, layer, packed layer",
    "now": "3: object store, layer, packed layer",
    "broadcast": "5: bucket, socket (in and out of the kernel), layer, packed layer",
}
"""Of each byte between the learner's tensor and what the engine multiplies with, by form. Read in the code, not counted
at run time."""
TRANSPORTS = {"before": "object_store, before", "now": "object_store", "broadcast": "broadcast (gloo)"}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one phase over several versions: seconds (median, fastest, slowest) and processor seconds (median)."""

    seconds: float
    fastest: float
    slowest: float
    processor: float

    @classmethod
    def of(cls, laps: Sequence[tuple[float, float]]) -> Cost:
        """`laps`: wall and processor seconds, one pair a version."""
        wall, cpu = zip(*laps, strict=True)
        return cls(statistics.median(wall), min(wall), max(wall), statistics.median(cpu))


def earlier_digest(tensor: Tensor) -> str:
    """As it was before: one canonical copy of the whole tensor, then its hash. The same digest."""
    plain = tensor.detach().cpu() + 0.0
    if plain.dtype == torch.bfloat16:
        plain.masked_fill_(plain.abs() < torch.finfo(torch.bfloat16).tiny, 0.0)
    hasher = xxhash.xxh3_128(f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)} ".encode())
    hasher.update(plain.contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def digests(weights: dict[str, Tensor], repeat: int) -> dict[str, Cost]:
    """Over all weights, the forms in turn so that a busy moment meets each."""
    forms: dict[str, Callable[[Tensor], str]] = {
        "digest, as it was": earlier_digest,
        "digest": tensor_digest,
        "digest, additive": lambda t: tensor_digest(t, DigestKind.ADDITIVE),
    }
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for _ in range(repeat):
        for name, form in forms.items():
            clock = _Clock()
            for tensor in weights.values():
                form(tensor)
            clock.total("all")
            costs[name].append(clock.laps["all"])
    assert all(tensor_digest(t) == earlier_digest(t) for t in weights.values())
    return {name: Cost.of(values) for name, values in costs.items()}


class _Source:
    """The learner's side, as rank 0 has it; `copies`: as it was, each tensor cloned before the store copies it."""

    def __init__(self, engine: TorchEngine, clock: _Clock, *, copies: bool) -> None:
        self._engine, self._clock, self._copies = engine, clock, copies
        self._refs: list[Ref] = []
        self._kept: list[list[Tensor]] = []

    async def manifest(self, version: int, *, adapters_only: bool = False) -> WeightManifest:
        self._refs = []
        if self._copies:
            self._kept = [
                [t.clone() for t in bucket.tensors] for bucket in weights_to_buckets(self._engine, BUCKET_BYTES)
            ]
        specs, refs = staged(self._engine, BUCKET_BYTES)
        self._kept = []
        self._refs = [Ref(ref) for ref in refs]
        self._clock.lap("learner: digest, object store")
        return WeightManifest(version, tuple(specs), tied_embeddings=True)

    async def canaries(self) -> list[Canary]:
        return [Canary((1, 2), (0.0,))]

    async def buckets(self) -> list[Ref]:
        self._clock.lap("engine: pause")
        return self._refs


class _Sender(_Source):
    """The same by broadcast."""

    def __init__(self, engine: TorchEngine, clock: _Clock) -> None:
        super().__init__(engine, clock, copies=False)
        self._transfer = WeightTransfer(engine)

    async def manifest(self, version: int, *, adapters_only: bool = False) -> WeightManifest:
        tensors = self._transfer.announce()
        self._clock.lap("learner: digest")
        return WeightManifest(version, tensors, tied_embeddings=True)

    async def open_transfer(self, num_workers: int) -> TransferLink:
        self._clock.lap("engine: pause")
        return self._transfer.open(
            "127.0.0.1", workers=num_workers, ranks_per_worker=1, timeout_s=100, bucket_bytes=BUCKET_BYTES
        )

    async def join_transfer(self) -> str:
        return await asyncio.to_thread(self._transfer.meet)

    async def send_weights(self) -> str:
        self._clock.lap("both: rendezvous")
        return await asyncio.to_thread(self._transfer.send)


class _Sink:
    """One worker, its actor's class called in this process."""

    name = "rollout/0"

    def __init__(self, worker: RolloutWorker, clock: _Clock) -> None:
        self._worker, self._clock = worker, clock
        self.ping, self.begin_update, self.resume = worker.ping, worker.begin_update, worker.resume
        self.join_transfer, self.receive_weights = worker.join_transfer, worker.receive_weights

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


def publications(folder: Path, engine: TorchEngine, versions: int, columns: int) -> dict[tuple[str, str], Cost]:
    """Of each form and phase on one engine, after a first version of each form that warms it up.

    By turns as it was (a clone of each tensor, a file for the engine), as it is and by broadcast, so that a busy moment
    meets each. Learner, store's client and engine are in this process: its processor time is that of the publication.
    """
    sync = SyncConfig(max_canary_gap=1e9, verify_columns=columns)
    worker = RolloutWorker(WorkerSpec("rollout/0", str(folder), CONFIG, sync, Device.cpu))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(worker.start())
    phases: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        for version in range(1, 3 * versions + 4):
            form = ("now", "before", "broadcast")[version % 3]
            worker._core_here = form != "before"
            clock = _Clock()
            sender = _Sender(engine, clock) if form == "broadcast" else None
            publisher = WeightPublisher(
                sender or _Source(engine, clock, copies=form == "before"),
                lambda c=clock: [_Sink(worker, c)],
                timeout_s=120,
                canary_limit=CanaryLimit(1e9),
                whole_weights=Broadcast(sender) if sender else None,
            )
            loop.run_until_complete(publisher.publish(version))
            clock.total(WHOLE)
            if version > 3:
                for name, cost in clock.laps.items():
                    phases.setdefault((form, name), []).append(cost)
    finally:
        loop.run_until_complete(worker.stop())
    return {name: Cost.of(values) for name, values in sorted(phases.items())}


def table(costs: dict[tuple[str, str], Cost], size: int) -> str:
    """By transport, as docs/measurements.md has it. `size`: bytes of one version."""
    rows = [
        "| transport | seconds: median (fastest to slowest) | of processor | GB/s | copies of a byte |",
        "|---" * 5 + "|",
    ]
    for form, transport in TRANSPORTS.items():
        cost = costs[form, WHOLE]
        spread = f"{cost.seconds:.2f} ({cost.fastest:.2f} to {cost.slowest:.2f})"
        rate = size / cost.seconds / 1e9
        rows.append(f"| {transport} | {spread} | {cost.processor:.2f} | {rate:.2f} | {COPIES[form]} |")
    return "\n".join(rows) + "\n"


class _Clock:
    """Seconds of wall and processor."""

    def __init__(self) -> None:
        self.laps: dict[str, tuple[float, float]] = {}
        self._first = self._last = (time.perf_counter(), time.process_time())

    def lap(self, name: str) -> None:
        now = (time.perf_counter(), time.process_time())
        self.laps[name], self._last = (now[0] - self._last[0], now[1] - self._last[1]), now

    def total(self, name: str) -> None:
        self.laps[name] = (time.perf_counter() - self._first[0], time.process_time() - self._first[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--versions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--digests-only", action="store_true")
    parser.add_argument("--sampled-only", action="store_true")
    parser.add_argument("--plain-allocator", action="store_true", help="glibc's, as a process that is no role has it")
    given = parser.parse_args()
    if (
        "LD_PRELOAD" not in os.environ and not given.plain_allocator
    ):  # as a role's process is: its threads, its allocator
        role = RoleEnv(Device.cpu, threads=os.cpu_count() or 1, keeps_pages=True).variables()
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | role)
    model = load_causal_lm(given.model, precision=Precision.float32)
    engine = TorchEngine(model, OptimConfig(), total_steps=0)
    weights = {name: p.detach() for name, p in model.hf.named_parameters()}
    size = sum(t.nbytes for t in weights.values())
    half = {n: t.bfloat16() for n, t in weights.items()}
    found = {f"float32 {n}": s for n, s in digests(weights, given.versions).items()}
    found |= {f"bfloat16 {n}": s for n, s in digests(half, given.versions).items()}
    if not given.digests_only:
        ray.init(num_cpus=2, object_store_memory=2 << 30, include_dashboard=False, log_to_driver=False)
        for columns in (0, SyncConfig().verify_columns)[1 if given.sampled_only else 0 :]:
            costs = publications(given.model, engine, given.versions, columns)
            print(f"\n{columns or 'all'} columns read back, {given.versions} versions\n\n{table(costs, size)}")
            found |= {f"{form}, {columns or 'all'} columns: {phase}": cost for (form, phase), cost in costs.items()}
        ray.shutdown()
    for name, cost in found.items():
        rate = size / (2 if name.startswith("bf") else 1) / cost.seconds / 1e9
        print(f"{name:<60} {cost.seconds:8.3f} s {cost.processor:8.3f} s of processor {rate:7.2f} GB/s")
    if given.json:
        given.json.write_text(json.dumps({"bytes": size, "costs": {n: asdict(c) for n, c in found.items()}}, indent=1))


if __name__ == "__main__":
    main()
