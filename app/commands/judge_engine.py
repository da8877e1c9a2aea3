"""A model of ours as the one that is asked: its questions are suites of `raylign eval`, all in one engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from raylign.app.commands.answer_process import AnswerProcess
from raylign.app.commands.evaluate import EvalSettings, answer_process, evaluate_in
from raylign.app.commands.judge_open import Asking, Tell, Who, cache_in
from raylign.app.commands.serve import causal_export
from raylign.evals.results import model_digest
from raylign.records.atomic import write_atomic
from raylign.reward.judge import Judge, Rubric
from raylign.reward.judge_cache import JudgeCache
from raylign.reward.samples import Sample


@contextmanager
def engine_model(who: Who, kept: Path, tell: Tell) -> Iterator[EngineModel]:
    """Known by its weights; its engine starts with the first question. Raises UserError when it is none of ours."""
    settings = EvalSettings(kept / "answers", who.run_root, deadline_s=who.deadline_s)
    weights = model_digest(causal_export(who.model, who.run_root))
    with answer_process(settings) as process:
        yield EngineModel(who, kept, weights, settings, process, tell)


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model of ours, answered by vLLM as `raylign eval` does, in one process for all questions."""

    who: Who
    kept: Path
    weights: str  # digest
    settings: EvalSettings
    process: AnswerProcess
    tell: Tell

    def asking(self, rubric: Rubric, folder: str = "") -> Asking:
        """Of one question, whose replies are kept in a folder of the model's."""
        judge = Judge(self.weights, rubric, 0.0, 1.0, self.who.max_new_tokens)
        cache = cache_in(self.kept / folder)
        return Asking(judge, cache, EngineAsker(self, judge, cache))


@dataclass(frozen=True, slots=True)
class EngineAsker:
    """Asks one question."""

    model: EngineModel
    judge: Judge
    cache: JudgeCache

    def ask(self, samples: Sequence[Sample]) -> dict[str, str]:
        """Every reply is had or the command ends. Raises what `evaluate` does."""
        wanted = {key: s for s in samples if self.cache.get(key := self.judge.key(s)) is None}
        if not wanted:
            return {}
        rows = [{"id": key, "prompt": self.judge.rubric.filled(sample)} for key, sample in wanted.items()]
        name = f"pairs-{hashlib.sha256(json.dumps(sorted(wanted)).encode()).hexdigest()[:12]}"
        folder = self.model.kept / "questions"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        suite = {
            "prompts": f"{name}.jsonl", "reward": {"rules": [{"rule": "finished"}]},
            "max_new_tokens": self.judge.max_new_tokens,
        }  # fmt: skip
        write_atomic(folder / f"{name}.yaml", yaml.safe_dump(suite))
        model = self.model
        [found] = evaluate_in(
            model.process,
            model.who.model,
            [str(folder / f"{name}.yaml")],
            model.settings,
            model.tell,
            keeps_engine=True,
        )
        for row in found.rows:
            self.cache.put(row.prompt_id, row.answers[0])
        return {}
