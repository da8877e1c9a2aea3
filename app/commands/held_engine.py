"""The engine of a process that answers suites: one at a time, kept for the next suite where that may be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raylign.app.commands.answer_job import AnswerJob
from raylign.conf.schema import Device, Precision, RolloutConfig, SyncConfig
from raylign.data.types import RolloutGroup
from raylign.rollout.interfaces import GenerationRequest

if TYPE_CHECKING:  # it reads its environment when it is imported
    from raylign.rollout.vllm_engine import VLLMEngine

LEAST = 1024
"""Tokens that an engine for tasks reads at least: their kinds of questions come one after another."""


@dataclass(slots=True)
class HeldEngine:
    """The engine of this process, once it has one."""

    runner: asyncio.Runner  # what an engine does goes on in one event loop
    engine: VLLMEngine | None = None
    longest: int = 0  # tokens of a row with its answer

    async def reading(self, job: AnswerJob, longest: int) -> VLLMEngine:
        """One for rows of so many tokens: another one only where they are longer than the last one reads."""
        if self.engine is not None and longest <= self.longest:
            return self.engine
        if job.keeps_engine:  # later rows may be longer
            longest = min(2 * longest, context(Path(job.model)) or 2 * longest)
        await self.stop()
        self.engine, self.longest = _new_engine(job, longest), longest
        await self.engine.start()
        return self.engine

    async def stop(self) -> None:
        """Nothing, where there is none."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.stop()


@dataclass(frozen=True, slots=True)
class TaskEngine:
    """evals.harness.Asks: questions of tasks, to the engine of a job."""

    job: AnswerJob
    held: HeldEngine
    context: int

    def generate(self, requests: Sequence[GenerationRequest]) -> list[RolloutGroup]:
        """One group a request, in order. Raises EngineDead."""
        longest = max(len(one.prompt.token_ids) + one.sampling.max_new_tokens for one in requests)

        async def asked() -> list[RolloutGroup]:
            return await (await self._engine(longest)).generate(requests)

        return self.held.runner.run(asked())

    def ranked(self, token_ids: Sequence[Sequence[int]]) -> list[list[tuple[float, int]]]:
        """Log-prob and rank of each token after the first. Raises EngineDead."""
        longest = 1 + max((len(ids) for ids in token_ids), default=0)

        async def asked() -> list[list[tuple[float, int]]]:
            return await (await self._engine(longest)).ranked_tokens(token_ids)

        return self.held.runner.run(asked())

    async def _engine(self, longest: int) -> VLLMEngine:
        return await self.held.reading(self.job, min(self.context, max(longest, LEAST)))


def context(folder: Path) -> int | None:
    """Tokens that a model reads, where its folder says."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("max_position_embeddings")
    return int(found) if found else None


def _new_engine(job: AnswerJob, longest: int) -> VLLMEngine:
    """Of the job's model, for sequences of at most `longest` tokens."""
    from raylign.rollout import environment

    device = Device(job.device)
    config = RolloutConfig(
        precision=Precision(job.precision),
        max_model_len=longest,
        threads_per_worker=job.threads,
        timeout_s=3600.0,
        max_concurrent=64,
    )
    environment.prepare(config, device)
    from raylign.rollout.vllm_engine import Hosting, VLLMEngine  # after the environment: vLLM reads it when imported

    hosting = Hosting(core_thread=not job.keeps_engine and environment.core_in_this_process(config, device))
    return VLLMEngine(job.model, config, SyncConfig(timeout_s=3600.0), name=job.name, device=device, hosting=hosting)
