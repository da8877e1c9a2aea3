"""What lm-evaluation-harness logs of each sample, as scores of a suite's prompts. Does not need its library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np
from raylign.conf.errors import DataError
from raylign.data.types import RolloutGroup
from raylign.evals.results import PromptScore
from raylign.evals.statistics import Range
from raylign.rollout.interfaces import GenerationRequest

SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em")
"""Metrics that are 1 for a right answer and 0 for any other."""

LOGPROBS = {
    "perplexity": "nats a sample, negative",
    "word_perplexity": "bits a word, negative",
    "byte_perplexity": "bits a byte, negative",
    "bits_per_byte": "bits a byte, negative",
}
"""Metrics that the harness computes of all samples together: of a single one it has the log-prob, and what it is of."""

NO_SCORE = "metric {metric} has no number for a single sample ({found}); name another one in harness.metric."


class Asks(Protocol):
    """The engine, as far as tasks need it; calls return when all is answered."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[RolloutGroup]:
        """One group a request, in order. Raises EngineDead."""
        ...

    def ranked(self, token_ids: Sequence[Sequence[int]]) -> list[list[tuple[float, int]]]:
        """Log-prob of each token after the first, and its rank, 1 for the likeliest. Raises EngineDead."""
        ...


@dataclass(frozen=True, slots=True)
class Metric:
    """What is counted of each sample."""

    name: str
    filter: str  # of the answer, before it is graded; "": the task's first
    higher_is_better: bool

    @property
    def unit(self) -> str:
        """Of its figure."""
        return "share right" if self.name in SHARES else LOGPROBS.get(self.name, self.name)

    @property
    def possible(self) -> Range | None:
        """What a sample can score, where that is known."""
        return Range(0.0, 1.0) if self.name in SHARES else None


def chosen_metric(wanted: str, of_tasks: Mapping[str, Mapping[str, bool]]) -> Metric:
    """What `harness.metric` names, else the tasks' first. `of_tasks`: by task, whether more of a metric is better.

    Raises DataError when a task does not have it, and when tasks count different things first.
    """
    name, _, answer_filter = wanted.partition(",")
    firsts = {task: next(iter(metrics), "") for task, metrics in of_tasks.items()}
    if not name and len(set(firsts.values())) > 1:
        told = ", ".join(f"{first} of {task}" for task, first in firsts.items())
        raise DataError(
            f"its tasks count different things ({told}); name one in harness.metric, or write a suite each."
        )
    name = name or next(iter(firsts.values()))
    if lacking := [task for task, metrics in of_tasks.items() if name not in metrics]:
        has = ", ".join(of_tasks[lacking[0]])
        raise DataError(f"harness.metric={wanted}: task {lacking[0]} does not have it; it has {has}.")
    return Metric(name, answer_filter, all(metrics[name] for metrics in of_tasks.values()))


def scored(samples: Mapping[str, Sequence[Mapping[str, Any]]], metric: Metric) -> list[PromptScore]:
    """One score a sample; `samples`: by task, as the harness logs them (`--log_samples`).

    Raises DataError for a filter that a task does not have, and for a metric without a number for a single sample.
    """
    rows = []
    for task, logged in samples.items():
        filters = dict.fromkeys(str(one["filter"]) for one in logged)
        wanted = metric.filter or next(iter(filters), "")
        if wanted not in filters:
            raise DataError(f"harness.metric: task {task} has no filter {wanted}; it has {', '.join(filters)}.")
        rows += [_row(task, one, metric) for one in logged if one["filter"] == wanted]
    return rows


def _row(task: str, sample: Mapping[str, Any], metric: Metric) -> PromptScore:
    return PromptScore(
        prompt_id=f"{task}:{sample['doc_id']}",
        prompt=str(sample["arguments"][0][0]),
        answers=_answers(sample),
        scores=(_score(sample.get(metric.name), metric),),
        slices=(f"subset: {task}",),
    )


def _answers(sample: Mapping[str, Any]) -> tuple[str, ...]:
    """What was generated, or the likeliest of given continuations; none of a text that was only read."""
    arguments, answers = sample["arguments"], [given[0] for given in sample["resps"]]
    if all(isinstance(answer, str) for answer in answers):
        return tuple(answers)
    if len(arguments) < 2 or any(len(given) < 2 for given in arguments):
        return ()
    best = max(range(len(answers)), key=lambda k: answers[k][0])
    return (str(arguments[best][1]),)


def _score(found: Any, metric: Metric) -> float:
    """Higher is better. Raises DataError."""
    if metric.name in LOGPROBS and isinstance(found, tuple | list):
        logprob, words_or_bytes = found
        return float(logprob) / words_or_bytes / math.log(2)
    if metric.name in LOGPROBS and found is not None:
        return float(found)
    if isinstance(found, Real | np.bool_) and math.isfinite(found):
        return float(found) if metric.higher_is_better else -float(found)
    raise DataError(NO_SCORE.format(metric=metric.name, found=type(found).__name__))
