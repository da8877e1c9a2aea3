"""How the controller scales: real loop, stream, pool, membership and publication over simulated engines and learners.

    python benchmarks/scaling.py [--workers 1,4,16,64] [--steps 12] [--json out.json]

An engine sleeps a fixed time for each token of a sample; lengths are lognormal with a coefficient of variation of 1. A
learner sleeps a fixed time for each token it trains on. So the ideal step is known: the longer of the two, and all that
is above it is ours. No Ray, no model: what is measured is the controller's own work and its waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import time
import tracemalloc
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from raylign.conf.schema import KLController
from raylign.data.types import FinishReason, Prompt, Reward, RewardOutcome, RolloutMeta, SampleKey, SamplingParams
from raylign.rollout.interfaces import Canary, GenerationRequest, GroupHandle, Ref, VerifyReport, WeightManifest
from raylign.rollout.pool import QUEUE_FACTOR, RolloutPool
from raylign.trainer.functional.kl import KLState
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.hooks import OnlineProgress
from raylign.trainer.loops.interfaces import ExperienceHandles, PromptDraw, StepBatch, TensorShards, UpdateResult
from raylign.trainer.loops.online import OnlineLoop, OnlineRoles, OnlineSettings
from raylign.trainer.loops.publish import WeightPublisher
from raylign.trainer.loops.stream import StreamSettings

MEAN_TOKENS, SAMPLES, CONCURRENT = 200, 8, 64
SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=1600)
SIGMA = math.sqrt(math.log(2.0))  # of a lognormal whose standard deviation is its mean


def length(key: SampleKey) -> int:
    """The same for a key in every run."""
    draw = random.Random(zlib.crc32(f"{key.epoch} {key.prompt_id} {key.k}".encode())).gauss(0.0, 1.0)
    return max(1, min(SAMPLING.max_new_tokens, round(MEAN_TOKENS * math.exp(SIGMA * draw - SIGMA**2 / 2))))


@dataclass(slots=True)
class _Call:
    """Samples that are waited for together."""

    size: int
    done: asyncio.Future[None]
    ended: dict[SampleKey, tuple[int, int]] = field(default_factory=dict)  # tokens, first version


class Engine:
    """A WorkerHandle with CONCURRENT slots, each a timer: as little work of its own as can be."""

    def __init__(self, name: str, token_s: float) -> None:
        self.name, self._token_s = name, token_s
        self._free = CONCURRENT
        self._waiting: deque[tuple[SampleKey, _Call]] = deque()
        self._version = self._next = 0
        self.busy_s = 0.0

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[GroupHandle]:
        keys = [key for request in requests for key in request.keys]
        call = _Call(len(keys), asyncio.get_running_loop().create_future())
        if self._token_s:
            self._waiting.extend((key, call) for key in keys)
            self._fill()
            await call.done
        else:
            call.ended = {key: (length(key), self._version) for key in keys}
        return [
            GroupHandle(
                Ref(request.prompt.prompt_id),
                tuple(
                    RolloutMeta(key, 100, tokens, FinishReason.STOP, first, self._version, float(first))
                    for key in request.keys
                    for tokens, first in (call.ended[key],)
                ),
            )
            for request in requests
        ]

    def _fill(self) -> None:
        loop = asyncio.get_running_loop()
        while self._free and self._waiting:
            key, call = self._waiting.popleft()
            tokens = length(key)
            self._free -= 1
            self.busy_s += tokens * self._token_s
            loop.call_later(tokens * self._token_s, self._end, key, tokens, self._version, call)

    def _end(self, key: SampleKey, tokens: int, first: int, call: _Call) -> None:
        self._free += 1
        call.ended[key] = (tokens, first)
        if len(call.ended) == call.size and not call.done.done():
            call.done.set_result(None)
        self._fill()

    async def begin_update(self, manifest: WeightManifest) -> None:
        self._next = manifest.version

    async def load_bucket(self, bucket: Ref) -> None: ...

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        return VerifyReport(self._next, {}, (), (), 0.0)

    async def resume(self, version: int) -> None:
        self._version = version

    async def ping(self) -> None: ...
    async def stop(self) -> None: ...


@dataclass
class Rest:
    """Every other role."""

    train_s: float  # a step's training
    lines: list[Mapping[str, float]] = field(default_factory=list)
    position: int = 0
    count: int = 0
    last: int = 0  # of the journal, which nothing is kept in

    async def write(self, step: int, batch: StepBatch) -> None: ...

    async def read(self, step: int) -> StepBatch:
        raise LookupError(f"step {step} is not kept")

    def next_batch(self, n: int) -> Sequence[PromptDraw]:
        first, self.position = self.position, self.position + n
        return [PromptDraw(0, Prompt(f"p{i}", (), (1,) * 100)) for i in range(first, first + n)]

    def begin(self) -> None: ...

    def state(self) -> Mapping[str, int | str]:
        return {"position": self.position}

    def taught(self, step: int, position: Mapping[str, int | str], drawn: object) -> Mapping[str, int | str]:
        return position

    async def score(self, groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        return [Reward(meta.key, float(meta.key.k), {}) for group in groups for meta in group.metas]

    def shape(self, groups: Sequence[GroupHandle], outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        return list(outcomes)

    async def assemble(self, groups: Sequence[GroupHandle], outcomes: Sequence[RewardOutcome], **_: object) -> (
        ExperienceHandles
    ):  # fmt: skip
        self.count += len(outcomes)
        return ExperienceHandles((Ref(0),), (), Ref(0), {}, math.nan, len(outcomes))

    async def logprobs(self, groups: Sequence[GroupHandle], *, temperature: float) -> TensorShards:
        return TensorShards((), ())

    async def update(self, shards: Sequence[Ref], *, kl_coef: float) -> UpdateResult:
        await asyncio.sleep(self.train_s)
        return UpdateResult({"loss": 0.1, "grad_norm": 1.0}, 1, 0)

    async def save(self, _: object, *, wait: bool = False) -> None: ...
    async def check(self) -> None: ...
    async def close(self) -> None: ...
    async def export(self, folder: str) -> None: ...
    async def manifest(self, version: int, *, adapters_only: bool = False) -> WeightManifest:
        return WeightManifest(version, (), False)

    async def canaries(self) -> Sequence[Canary]:
        return []

    async def buckets(self) -> Sequence[Ref]:
        return [Ref(0)]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.lines.append(metrics)


@dataclass(frozen=True, slots=True)
class Figures:
    """One run."""

    workers: int
    staleness: int
    step_s: float  # mean, without the steps that fill the pipeline and those that empty it
    generation_s: float  # engines' busy time a step over slots: what generation alone would take
    training_s: float
    samples_per_s: float
    cpu_us_per_sample: float  # of the controller's process, simulated engines included
    oldest: float

    @property
    def over_ideal(self) -> float:
        """Step over the longer of generation and training."""
        return self.step_s / max(self.generation_s, self.training_s)


def run(*, workers: int, staleness: int, steps: int, train_s: float, token_s: float, prompts: int) -> Figures:
    """One run of the real loop."""

    async def main() -> Figures:
        engines = [Engine(f"rollout/{i}", token_s) for i in range(workers)]
        rest = Rest(train_s)
        pool = RolloutPool(engines, max_concurrent=CONCURRENT * QUEUE_FACTOR, timeout_s=3600)
        loop = OnlineLoop(
            OnlineRoles(
                pool,
                rest,
                rest,
                rest,
                WeightPublisher(rest, pool.members, timeout_s=60, canary_limit=CanaryLimit(1.0)),
                rest,
                None,
                None,
            ),
            OnlineSettings(
                steps, StreamSettings(prompts, SAMPLES, SAMPLING, staleness, chunks=4), False, 0.5, save_every=0, seed=0
            ),
            prompts=rest,
            progress=OnlineProgress(0, KLState(KLController.fixed, 0.0, 1.0, 1.0), {}),
            hooks=[],
            sink=rest,
            saver=rest,
            should_stop=lambda: False,
        )
        cpu = time.process_time()
        await loop.run()
        cpu = time.process_time() - cpu
        later = rest.lines[staleness + 1 : -staleness - 1]  # as many steps are begun as are ended
        return Figures(
            workers,
            staleness,
            step_s=statistics.fmean(line["time/step"] for line in later),
            generation_s=sum(engine.busy_s for engine in engines) / steps / (workers * CONCURRENT),
            training_s=train_s,
            samples_per_s=prompts * SAMPLES / statistics.fmean(line["time/step"] for line in later),
            cpu_us_per_sample=cpu / rest.count * 1e6,
            oldest=max(line["rollout/staleness_max"] for line in rest.lines),
        )

    return asyncio.run(main())


def overhead(tokens_factor: float) -> tuple[float, float]:
    """Controller's microseconds and bytes a sample with engines that answer at once."""
    global MEAN_TOKENS
    before, MEAN_TOKENS = MEAN_TOKENS, round(MEAN_TOKENS * tokens_factor)
    try:
        figures = run(workers=16, staleness=1, steps=8, train_s=0.0, token_s=0.0, prompts=512)
        tracemalloc.start()
        run(workers=16, staleness=1, steps=7, train_s=0.0, token_s=0.0, prompts=512)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return figures.cpu_us_per_sample, peak / (2 * 512 * SAMPLES)  # two steps are held at most
    finally:
        MEAN_TOKENS = before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,4,16,64")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    records = []
    print("Step over max(generation, training), 4 workers, 256 prompts x 8 samples")
    token_s = 0.0004
    ideal = 256 * SAMPLES * MEAN_TOKENS * token_s / (4 * CONCURRENT)  # generation with every slot busy
    for ratio in (0.5, 1.0, 2.0):
        for staleness in (0, 1, 2, 3):
            figures = run(
                workers=4, staleness=staleness, steps=given.steps, train_s=ideal * ratio, token_s=token_s, prompts=256
            )
            records.append({**asdict(figures), "over_ideal": figures.over_ideal, "train_over_generation": ratio})
            print(
                f"  training {ratio:3.1f} x generation, staleness {staleness}: step {figures.step_s:.3f} s, ideal "
                f"{max(figures.generation_s, figures.training_s):.3f} s, {figures.over_ideal:.3f} x"
            )
    print("Samples/s by workers, training free, 64 prompts a worker, staleness 2")
    base = 0.0
    for workers in map(int, given.workers.split(",")):
        figures = run(workers=workers, staleness=2, steps=given.steps, train_s=0.0, token_s=0.003, prompts=64 * workers)
        base = base or figures.samples_per_s / workers
        share = figures.samples_per_s / workers / base
        records.append({**asdict(figures), "of_linear": share})
        print(f"  {workers:3d}: {figures.samples_per_s:8.1f} samples/s, {share:.3f} of linear")
    print("Controller a sample, engines that answer at once")
    for factor in (1.0, 8.0):
        us, size = overhead(factor)
        records.append({"length_factor": factor, "us_per_sample": us, "bytes_per_sample": size})
        print(f"  {factor:g} x the length: {us:.1f} us, {size:.0f} bytes")
    if given.json:
        given.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
