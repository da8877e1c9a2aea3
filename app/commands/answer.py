"""One model answers suites, in a process of its own: `python -m raylign.app.commands.answer` with jobs on stdin.

A process a model: an engine holds its memory and its threads until its process ends, and vLLM reads its environment
when it is imported. What it finds goes to the result store, so a later call asks only what is missing. Each line of
standard input is a job; the engine stays for the next one where the job says so.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raylign.app.cli import run_command
from raylign.app.commands.answer_job import DONE, NOTE, RESULT, AnswerJob
from raylign.app.commands.held_engine import HeldEngine, TaskEngine, context
from raylign.app.launch.functions import function_files, reward_functions
from raylign.app.launch.judges import judge_rubrics, rubric_files
from raylign.conf.errors import DataError, RunFailed
from raylign.conf.model_folder import model_folder
from raylign.conf.schema import Device
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
from raylign.reward.functions import installed_file
from raylign.reward.scorer import ComposedScorer
from raylign.reward.sources import RewardSources
from raylign.rollout.interfaces import EngineDead
from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from raylign.evals.harness_tasks import HarnessTasks

USUAL_CONTEXT = 2048
"""Tokens, of a model that does not say what it reads; the harness takes the same."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A suite with its rows in this model's tokens, and where its result belongs."""

    suite: Suite
    prompts: tuple[Prompt, ...]
    texts: tuple[Text, ...]
    digest: str
    key: str
    tasks: HarnessTasks | None = None  # instead of rows

    @property
    def longest(self) -> int:
        """Tokens of the longest row with its answer."""
        rows = [len(p.token_ids) + self.suite.config.max_new_tokens for p in self.prompts]
        return max([*rows, *(len(text.token_ids) + 1 for text in self.texts)])

    def __len__(self) -> int:
        return len(self.tasks or self.prompts or self.texts)


def answer(job: AnswerJob, engine: HeldEngine) -> list[str]:
    """The keys of all results, in the order of the job's suites; missing ones are made.

    Raises DataError, ConfigError, ModelLoadError, and RunFailed when the engine does not answer.
    """
    folder, store = Path(job.model), ResultStore(Path(job.results))
    tokenizer = load_tokenizer(job.model)
    weights = model_digest(folder)
    asked = [_asked(job, open_suite(name), tokenizer, weights) for name in job.suites]
    missing = [one for one in asked if job.again or store.find(one.key) is None]
    try:
        for one in missing:
            if one.tasks:
                store.keep(one.key, _result(job, one, weights, *_of_tasks(job, one, one.tasks, tokenizer, engine)))
        if own := [one for one in missing if not one.tasks]:
            stops = tuple(sorted(EndTokens(tokenizer).ids))
            outcomes = engine.runner.run(_ask(job, own, stops, engine))
            for one, (groups, rows, seconds) in zip(own, outcomes, strict=True):
                found = _graded(one.suite, groups, job) if groups else rows
                store.keep(one.key, _result(job, one, weights, found, seconds))
    except EngineDead as error:
        raise RunFailed(f"{job.name}: {error}") from error
    return [one.key for one in asked]


def _asked(job: AnswerJob, suite: Suite, tokenizer: PreTrainedTokenizerBase, weights: str) -> _Asked:
    tasks = None
    if suite.config.harness.tasks:
        from raylign.evals.harness_tasks import HarnessTasks  # lm_eval need not be installed

        tasks = HarnessTasks.of(suite)
        parts = {"model": weights, "suite": tasks.digest, "precision": job.precision, "device": job.device}
        return _Asked(suite, (), (), tasks.digest, result_key(suite.name, parts), tasks)
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
    installed = {given.path: installed_file(given.path) for given in reward.functions}
    found |= {f"installed {name}": digest(path) for name, path in installed.items() if path is not None}
    if reward.model:
        found["model"] = model_digest(Path(model_folder(reward.model).path))
    return found


async def _ask(
    job: AnswerJob, asked: Sequence[_Asked], stops: tuple[int, ...], held: HeldEngine
) -> list[tuple[list[RolloutGroup], list[PromptScore], float]]:
    """Of each suite the answers (or, of texts, the losses) and the seconds they took."""
    try:
        engine = await held.reading(job, _longest(job, asked))
        outcomes = []
        for one in asked:
            _note(job, one)
            started = time.monotonic()
            groups = await answers(engine, one.suite.config, one.prompts, stops) if one.prompts else []
            rows = await text_losses(engine, one.texts) if one.texts else []
            outcomes.append((groups, rows, time.monotonic() - started))
        return outcomes
    finally:
        if not job.keeps_engine:
            await held.stop()


def _of_tasks(
    job: AnswerJob, one: _Asked, tasks: HarnessTasks, tokenizer: PreTrainedTokenizerBase, held: HeldEngine
) -> tuple[list[PromptScore], float]:
    """The scores and the seconds they took."""
    _note(job, one)
    started = time.monotonic()
    reads = context(Path(job.model)) or USUAL_CONTEXT
    rows = tasks.answered(tokenizer, reads, TaskEngine(job, held, reads))
    return rows, time.monotonic() - started


def _note(job: AnswerJob, one: _Asked) -> None:
    sys.stdout.write(f"{NOTE}{job.name}: {one.suite.name}, {len(one)} rows\n")
    sys.stdout.flush()


def _longest(job: AnswerJob, asked: Sequence[_Asked]) -> int:
    """Tokens of the longest row with its answer. Raises DataError when the model does not read as many."""
    longest = max(one.longest for one in asked)
    limit = context(Path(job.model))
    if limit is not None and longest > limit:
        which = next(one.suite for one in asked if one.longest > limit)
        raise DataError(
            f"suite {which.name}: a row takes {longest} tokens with its answer (max_new_tokens="
            f"{which.config.max_new_tokens}), and {job.name} reads {limit}; shorten it, or leave the suite out."
        )
    return longest


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
        unit=one.tasks.metric.unit if one.tasks else suite.unit,
        possible=(one.tasks and one.tasks.metric.possible) or suite.possible,
        seconds=seconds,
        rows=tuple(rows),
    )


def _main() -> None:
    with asyncio.Runner() as runner:
        engine = HeldEngine(runner)
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
