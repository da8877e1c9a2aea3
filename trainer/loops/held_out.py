"""The hook that answers the held-out prompts before, during and after training and keeps every answer on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raylign.data.types import FinishReason
from raylign.trainer.loops.evaluate import Evaluator, JudgedAnswer, summarise
from raylign.trainer.loops.hooks import OnlineProgress, StepReport, due
from raylign.trainer.loops.pass_at_k import PassEvaluator


@dataclass(frozen=True, slots=True)
class PairedOutcome:
    """The same held-out prompts answered by the start model and by the trained one."""

    num_prompts: int
    preference_vs_start: float | None  # share of prompts whose new answer has the higher gold score; a tie is half
    gold_score_before: float | None
    gold_score_after: float | None
    reward_before: float | None
    reward_after: float | None
    fluency_before: float | None  # nats a token under the reference
    fluency_after: float | None


class HeldOutHook:
    """Writes `eval/step-NNNNNN.jsonl` at each evaluation and `eval/answers.jsonl` (before and after) at the end."""

    def __init__(
        self, evaluator: Evaluator, folder: Path, *, every: int, gold: str, passes: PassEvaluator | None = None
    ) -> None:
        self._evaluator = evaluator
        self._passes = passes
        self._folder = folder
        self._every = every
        self._gold = gold

    async def on_start(self, progress: OnlineProgress) -> Mapping[str, float]:
        """The start model's answers; a resumed run has them on disk already."""
        return await self._evaluate(0) if progress.step == 0 else {}

    async def after_step(self, report: StepReport, *, last: bool) -> Mapping[str, float]:
        """Evaluate when it is due, and pair with the start model's answers when the run is complete."""
        if not last and not due(report.progress.step, self._every):
            return {}
        metrics = await self._evaluate(report.progress.step)
        if last:
            self._write_pairs(report.progress.step)
        return metrics

    def outcome(self, last_step: int) -> PairedOutcome:
        """The paired figures of a finished run, from the files."""
        before, after = self._read(0), self._read(last_step)
        first, final = summarise(before), summarise(after)
        return PairedOutcome(
            num_prompts=len(after),
            preference_vs_start=preference(self._golds(before), self._golds(after)),
            gold_score_before=first.get(self._gold),
            gold_score_after=final.get(self._gold),
            reward_before=first.get("reward"),
            reward_after=final.get("reward"),
            fluency_before=first.get("fluency"),
            fluency_after=final.get("fluency"),
        )

    async def _evaluate(self, step: int) -> Mapping[str, float]:
        answers, own = await self._evaluator.run()
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(a), "finish_reason": a.finish_reason.value} for a in answers]
        self._write(self._folder / f"step-{step:06d}.jsonl", rows)
        figures = {**summarise(answers), **own, **(await self._passes.run() if self._passes else {})}
        return {f"eval/held_out/{name}": value for name, value in figures.items()}

    def _write_pairs(self, last_step: int) -> None:
        rows = [
            {
                "prompt": old.prompt,
                "before": old.answer,
                "after": new.answer,
                "gold_before": old.components.get(self._gold),
                "gold_after": new.components.get(self._gold),
                "reward_before": old.reward,
                "reward_after": new.reward,
                "fluency_before": old.fluency,
                "fluency_after": new.fluency,
            }
            for old, new in zip(self._read(0), self._read(last_step), strict=True)
        ]
        self._write(self._folder / "answers.jsonl", rows)

    def _golds(self, answers: Sequence[JudgedAnswer]) -> list[float | None]:
        return [answer.components.get(self._gold) for answer in answers]

    def _read(self, step: int) -> list[JudgedAnswer]:
        lines = (self._folder / f"step-{step:06d}.jsonl").read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        return [JudgedAnswer(**{**row, "finish_reason": FinishReason(row["finish_reason"])}) for row in rows]

    @staticmethod
    def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        partial.replace(path)


def preference(before: Sequence[float | None], after: Sequence[float | None]) -> float | None:
    """Share of pairs where `after` scores higher, ties counting half; None when no pair has both scores."""
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if not pairs:
        return None
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for b, a in pairs) / len(pairs)
