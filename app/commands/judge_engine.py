"""A model of ours as the judge of `raylign feedback judge`: its questions are a suite of `raylign eval`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from raylign.app.commands.evaluate import EvalSettings, evaluate
from raylign.app.commands.serve import causal_export
from raylign.evals.results import model_digest
from raylign.records.atomic import write_atomic
from raylign.reward.judge import Judge, Rubric
from raylign.reward.judge_cache import JudgeCache
from raylign.reward.samples import Sample


@dataclass(frozen=True, slots=True)
class EngineAsker:
    """A model of ours, answered by vLLM as `raylign eval` does, in a process of its own."""

    judge: Judge
    cache: JudgeCache
    settings: EvalSettings
    model: str
    folder: Path  # for the questions
    tell: Callable[[str], None]

    def ask(self, samples: Sequence[Sample]) -> dict[str, str]:
        """Every reply is had or the command ends. Raises what `evaluate` does."""
        wanted = {key: s for s in samples if self.cache.get(key := self.judge.key(s)) is None}
        if not wanted:
            return {}
        rows = [{"id": key, "prompt": self.judge.rubric.filled(sample)} for key, sample in wanted.items()]
        name = f"pairs-{hashlib.sha256(json.dumps(sorted(wanted)).encode()).hexdigest()[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        suite = {
            "prompts": f"{name}.jsonl", "reward": {"rules": [{"rule": "finished"}]},
            "max_new_tokens": self.judge.max_new_tokens,
        }  # fmt: skip
        write_atomic(self.folder / f"{name}.yaml", yaml.safe_dump(suite))
        [found] = evaluate(self.model, [str(self.folder / f"{name}.yaml")], self.settings, self.tell)
        for row in found.rows:
            self.cache.put(row.prompt_id, row.answers[0])
        return {}


def engine_asker(
    model: str, rubric: Rubric, cache: JudgeCache, how: EvalSettings, max_new_tokens: int, tell: Callable[[str], None]
) -> tuple[Judge, EngineAsker]:
    """The judge, which is known by its weights, and who asks it. Raises UserError when `model` is none of ours."""
    weights = model_digest(causal_export(model, how.run_root))
    judge = Judge(weights, rubric, 0.0, 1.0, max_new_tokens)
    return judge, EngineAsker(judge, cache, how, model, how.results.with_name("questions"), tell)
