"""One model answers suites, in a process of its own: `python -m raylign.app.commands.answer` with jobs on stdin.

A process a model: an engine holds its memory and its threads until its process ends, and vLLM reads its environment
when it is imported. What it finds goes to the result store, so a later call asks only what is missing. Each line of
standard input is a job; the engine stays for the next one where the job says so.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.app.cli import run_command
from raylign.app.commands.answer_job import DONE, NOTE, RESULT, AnswerJob
from raylign.app.launch.functions import function_files, reward_functions
from raylign.app.launch.judges import judge_rubrics, rubric_files
from raylign.conf.errors import DataError, RunFailed
from raylign.conf.model_folder import model_folder
from raylign.conf.schema import Device, Precision, RolloutConfig, SyncConfig
from raylign.conf.suites import SuiteKind
from raylign.data.end_tokens import EndTokens
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import Prompt, RolloutGroup
from raylign.evals.asking import answers, graded, text_losses
from raylign.evals.results import PromptScore, ResultStore, SuiteResult, model_digest, result_key
from raylign.evals.slices import SLICED, names_in
from raylign.evals.suite_digest import suite_digest
from raylign.evals.suites import TODAY, Suite, Text, open_suite, prompts_of, texts_of
from raylign.records.manifest import digest
from raylign.reward.scorer import ComposedScorer
from raylign.reward.sources import RewardSources
from raylign.rollout.interfaces import EngineDead, RolloutEngine
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class _Asked:
    """A suite with its rows in this model's tokens, and where its result belongs."""

    suite: Suite
    prompts: tuple[Prompt, ...]
    texts: tuple[Text, ...]
    digest: str
    key: str

    @property
    def longest(self) -> int:
        """Tokens of the longest row with its answer."""
        rows = [len(p.token_ids) + self.suite.config.max_new_tokens for p in self.prompts]
        return max([*rows, *(len(text.token_ids) + 1 for text in self.texts)])

    def __len__(self) -> int:
        return len(self.prompts) or len(self.texts)


@dataclass(slots=True)
class _HeldEngine:
    """The engine of this process, once it has one."""

    runner: asyncio.Runner  # what an engine does goes on in one event loop
    engine: RolloutEngine | None = None
    longest: int = 0  # tokens of a row with its answer

    async def reading(self, job: AnswerJob, asked: Sequence[_Asked]) -> RolloutEngine:
        """One for these suites: another one only where the rows are longer than the last one reads.

        Raises DataError when they are longer than the model reads.
        """
        longest = _longest(job, asked)
        if self.engine is not None and longest <= self.longest:
            return self.engine
        if job.keeps_engine:  # later rows may be longer
            longest = min(2 * longest, _context(Path(job.model)) or 2 * longest)
        await self.stop()
        self.engine, self.longest = _new_engine(job, longest), longest
        await self.engine.start()
        return self.engine

    async def stop(self) -> None:
        """Nothing, where there is none."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.stop()


def answer(job: AnswerJob, engine: _HeldEngine) -> list[str]:
    """The keys of all results, in the order of the job's suites; missing ones are made.

    Raises DataError, ConfigError, ModelLoadError, and RunFailed when the engine does not answer.
    """
    folder, store = Path(job.model), ResultStore(Path(job.results))
    tokenizer = load_tokenizer(job.model)
    weights = model_digest(folder)
    asked = [_asked(job, open_suite(name), tokenizer, weights) for name in job.suites]
    missing = [one for one in asked if job.again or store.find(one.key) is None]
    if missing:
        stops = tuple(sorted(EndTokens(tokenizer).ids))
        try:
            outcomes = engine.runner.run(_ask(job, missing, stops, engine))
        except EngineDead as error:
            raise RunFailed(f"{job.name}: {error}") from error
        for one, (groups, rows, seconds) in zip(missing, outcomes, strict=True):
            found = _graded(one.suite, groups, job) if groups else rows
            store.keep(one.key, _result(job, one, weights, found, seconds))
    return [one.key for one in asked]


def _asked(job: AnswerJob, suite: Suite, tokenizer: PreTrainedTokenizerBase, weights: str) -> _Asked:
    loss = suite.config.kind is SuiteKind.text_loss
    prompts: tuple[Prompt, ...] = () if loss else prompts_of(suite, tokenizer)
    texts = texts_of(suite, tokenizer) if loss else ()
    digest = suite_digest(suite, texts or prompts, _graders(suite))
    parts = {"model": weights, "suite": digest, "precision": job.precision, "device": job.device}
    if any(text.slices for text in texts) or any(names_in(prompt.columns) for prompt in prompts):
        parts["slices"] = ",".join(SLICED)  # results of before there were slices lack them
    key = result_key(suite.name, parts)
    return _Asked(suite, prompts, texts, digest, key)


def _graders(suite: Suite) -> dict[str, str]:
    reward = suite.config.reward
    files = {**function_files(reward), **rubric_files(reward)}
    found = {name: digest(path) for name, path in files.items()}
    if reward.model:
        found["model"] = model_digest(Path(model_folder(reward.model).path))
    return found


async def _ask(
    job: AnswerJob, asked: Sequence[_Asked], stops: tuple[int, ...], held: _HeldEngine
) -> list[tuple[list[RolloutGroup], list[PromptScore], float]]:
    """Of each suite the answers (or, of texts, the losses) and the seconds they took."""
    try:
        engine = await held.reading(job, asked)
        outcomes = []
        for one in asked:
            sys.stdout.write(f"{NOTE}{job.name}: {one.suite.name}, {len(one)} rows\n")
            sys.stdout.flush()
            started = time.monotonic()
            groups = await answers(engine, one.suite.config, one.prompts, stops) if one.prompts else []
            rows = await text_losses(engine, one.texts) if one.texts else []
            outcomes.append((groups, rows, time.monotonic() - started))
        return outcomes
    finally:
        if not job.keeps_engine:
            await held.stop()


def _longest(job: AnswerJob, asked: Sequence[_Asked]) -> int:
    """Tokens of the longest row with its answer. Raises DataError when the model does not read as many."""
    longest = max(one.longest for one in asked)
    limit = _context(Path(job.model))
    if limit is not None and longest > limit:
        which = next(one.suite for one in asked if one.longest > limit)
        raise DataError(
            f"suite {which.name}: a row takes {longest} tokens with its answer (max_new_tokens="
            f"{which.config.max_new_tokens}), and {job.name} reads {limit}; shorten it, or leave the suite out."
        )
    return longest


def _new_engine(job: AnswerJob, longest: int) -> RolloutEngine:
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


def _context(folder: Path) -> int | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("max_position_embeddings")
    return int(found) if found else None


def _graded(suite: Suite, groups: list[RolloutGroup], job: AnswerJob) -> list[PromptScore]:
    reward = suite.config.reward
    sources = RewardSources(
        functions=reward_functions(reward),
        rubrics=judge_rubrics(reward),
        judged_folder=str(Path(job.results).absolute() / "judged"),
        today=TODAY,
        policy_model=job.model,
    )
    scorer = ComposedScorer(reward, Device(job.device), sources)
    return graded(suite.config, groups, scorer.score(groups))


def _result(job: AnswerJob, one: _Asked, weights: str, rows: Sequence[PromptScore], seconds: float) -> SuiteResult:
    suite = one.suite
    return SuiteResult(
        suite=suite.name,
        about=suite.config.about,
        model=job.name,
        model_digest=weights,
        suite_digest=one.digest,
        unit=suite.unit,
        possible=suite.possible,
        seconds=seconds,
        rows=tuple(rows),
    )


def _main() -> None:
    with asyncio.Runner() as runner:
        engine = _HeldEngine(runner)
        try:
            for line in sys.stdin:
                for key in answer(AnswerJob.from_json(line), engine):
                    sys.stdout.write(f"{RESULT}{key}\n")
                sys.stdout.write(f"{DONE}\n")
                sys.stdout.flush()
        finally:
            runner.run(engine.stop())


if __name__ == "__main__":
    sys.exit(run_command(_main))
