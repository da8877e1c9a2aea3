"""Tasks of lm-evaluation-harness: loaded with their rows, and asked of our engine.

Beside harness_model.py the only file that imports lm_eval, an optional package (the extra `harness`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from raylign.conf.errors import DataError
from raylign.conf.nearest import nearest
from raylign.evals.harness import Asks, Metric, chosen_metric, scored
from raylign.evals.harness_model import EngineModel
from raylign.evals.results import PromptScore
from raylign.evals.suite_digest import chosen, code_digests
from raylign.evals.suites import Suite
from transformers import PreTrainedTokenizerBase

RANDOM_SEED, OTHER_SEED = 0, 1234
"""The harness's own, of `random` and of everything else: examples before a question are drawn with them."""


@dataclass(frozen=True, slots=True)
class HarnessTasks:
    """The tasks of a suite, with their rows."""

    suite: Suite
    tasks: Mapping[str, Task]
    metric: Metric

    @classmethod
    def of(cls, suite: Suite) -> HarnessTasks:
        """Raises DataError for a task that does not exist, cannot be loaded without a download, or runs code."""
        given = suite.config.harness
        manager = _manager(given.include_path, tuple(given.tasks))
        tasks: dict[str, Task] = {}
        for name in given.tasks:
            tasks |= _loaded(suite, manager, name)
        for name, task in tasks.items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise DataError(f"suite {suite.name}: task {name} runs code of answers, or reads more than text; leave "
                                "it out.")  # fmt: skip
            _set_examples(task, given.num_fewshot)
        try:
            metric = chosen_metric(given.metric, {name: task.higher_is_better() for name, task in tasks.items()})
        except DataError as error:
            raise DataError(f"suite {suite.name}: {error}") from error
        return cls(suite, tasks, metric)

    def __len__(self) -> int:
        return sum(1 for task in self.tasks.values() for _ in self._rows(task))

    @property
    def digest(self) -> str:
        """Hash of settings, of the harness's version, of the code below include_path, and of each task's version,
        definition and rows."""
        config = self.suite.config
        tasks = {
            name: {
                "version": str(task.VERSION),
                "definition": {k: v for k, v in task.dump_config().items() if k != "dataset_kwargs"},
                "rows": _hash(self._rows(task)),
                "examples": _hash(task.fewshot_docs() or ()) if task.get_config("num_fewshot") else "",
            }
            for name, task in self.tasks.items()
        }
        settings = chosen(replace(config, about="", harness=replace(config.harness, include_path="")))
        code = code_digests(Path(config.harness.include_path)) if config.harness.include_path else {}
        return _hash([{"lm_eval": version("lm_eval"), "config": settings, "tasks": tasks, "code": code}])

    def answered(self, tokenizer: PreTrainedTokenizerBase, context: int, asks: Asks) -> list[PromptScore]:
        """Every row asked and graded. Raises EngineDead, and DataError for sampling that the engine does not do."""
        config = self.suite.config
        random.seed(RANDOM_SEED)
        np.random.seed(OTHER_SEED)
        for task in self.tasks.values():
            task.set_fewshot_seed(seed=OTHER_SEED)
        found = evaluate(
            EngineModel(tokenizer, context, config.max_new_tokens, asks),
            {"tasks": dict(self.tasks)},
            limit=config.harness.limit or None,
            bootstrap_iters=0,
            system_instruction=config.system_prompt or None,
            apply_chat_template=config.harness.apply_chat_template,
            fewshot_as_multiturn=config.harness.apply_chat_template,
        )
        assert found is not None
        return scored(found["samples"], self.metric)

    def _rows(self, task: Task) -> Iterable[Any]:
        return islice(iter(task.eval_docs), self.suite.config.harness.limit or None)


@functools.cache
def _manager(include_path: str, names: tuple[str, ...]) -> TaskManager:
    """Knows the tasks by name. To read all of the harness's own takes ten seconds, and tasks of one's own need none."""
    if include_path:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if set(names) <= set(own.all_subtasks):
            return own
    return TaskManager(include_path=include_path or None)


def _loaded(suite: Suite, manager: TaskManager, name: str) -> dict[str, Task]:
    if name not in manager.all_tasks:
        near = nearest(name, manager.all_tasks)
        hint = f"did you mean {near}?" if near else "`lm_eval ls tasks` lists them."
        raise DataError(f"suite {suite.name}: lm-evaluation-harness has no task {name}; {hint}")
    try:
        return dict(manager.load([name])["tasks"])
    except Exception as error:  # whatever data sets, and code of tasks, raise
        included = suite.config.harness.include_path
        fetch = f"lm_eval run --model dummy --tasks {name} --limit 1" + (
            f" --include_path {included}" if included else ""
        )
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"suite {suite.name}: task {name} cannot be loaded ({said}); nothing is downloaded here, so where its data "
            f"are missing fetch them first: {fetch}"
        ) from error


def _set_examples(task: Task, wanted: int | None) -> None:
    """As the harness's own command does: a task that says 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own is None or (wanted is not None and own != 0):
        task.set_config(key="num_fewshot", value=wanted or 0)


def _hash(parts: Iterable[object]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, sort_keys=True, default=_plain).encode() + b"\0")
    return total.hexdigest()


def _plain(value: object) -> str:
    """Functions by name, for their addresses change; the sources of a task's own are in its definition."""
    return str(getattr(value, "__qualname__", value))
