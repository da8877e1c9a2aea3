"""Held-out prompts answered by the present policy and judged by everything at hand. Over Protocols; no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from raylign.data.types import Completion, FinishReason, Prompt, Reward, SamplingParams
from raylign.trainer.loops.interfaces import GroupHandle, ReferenceGroup, RewardScorer, RolloutPool, TensorReader


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """One held-out answer. `fluency` is the mean log-prob a token under the reference, in nats, without the token that
    ended the answer."""

    prompt_id: str
    prompt: str
    answer: str
    finish_reason: FinishReason
    num_tokens: int
    reward: float | None  # None: the reward failed
    components: Mapping[str, float]
    fluency: float | None  # None: there is no reference


class SetMetrics(Protocol):
    """Metrics of a user's own over all held-out answers together."""

    async def measure(self, answers: Sequence[tuple[Prompt, Completion]]) -> Mapping[str, float]:
        """Numbers by name. What fails is reported by its name and has no number; nothing is raised for it."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Answers `prompts` once each under `sampling` and judges the answers."""

    rollouts: RolloutPool
    reward: RewardScorer
    reference: ReferenceGroup | None
    reader: TensorReader
    prompts: Sequence[Prompt]
    sampling: SamplingParams
    own: SetMetrics | None = None

    async def run(self) -> tuple[list[JudgedAnswer], Mapping[str, float]]:
        """One JudgedAnswer a prompt, in the order of `prompts`, and the user's own metrics of all of them."""
        groups = await self.rollouts.generate(self.prompts, epoch=-1, samples_per_prompt=1, sampling=self.sampling)
        outcomes = await self.reward.score(groups)
        fluency = await self._fluency(groups)
        answers, answered = [], []
        for handle, outcome, fluent in zip(groups, outcomes, fluency, strict=True):
            group = await self.reader.rollout_group(handle)
            completion = group.completions[0]
            answered.append((group.prompt, completion))
            scored = outcome if isinstance(outcome, Reward) else None
            answers.append(
                JudgedAnswer(
                    prompt_id=group.prompt.prompt_id,
                    prompt=group.prompt.text,
                    answer=completion.text,
                    finish_reason=completion.finish_reason,
                    num_tokens=len(completion.response_ids),
                    reward=scored.score if scored else None,
                    components=scored.components if scored else {},
                    fluency=fluent,
                )
            )
        return answers, await self.own.measure(answered) if self.own else {}

    async def _fluency(self, groups: Sequence[GroupHandle]) -> list[float | None]:
        """Under the untempered reference, whatever the sampling temperature was."""
        if self.reference is None:
            return [None] * len(groups)
        shards = await self.reference.logprobs(groups, temperature=1.0)
        return [
            _mean_without_end(logprobs[handle.metas[0].prompt_tokens :].tolist(), handle.metas[0].finish_reason)
            for handle, logprobs in zip(groups, await self.reader.per_group(shards, len(groups)), strict=True)
        ]


def _mean_without_end(logprobs: Sequence[float], finish_reason: FinishReason) -> float | None:
    """Mean over the words of an answer; None when there is nothing but the end token."""
    words = logprobs[:-1] if finish_reason is FinishReason.STOP else logprobs
    return sum(words) / len(words) if words else None


def summarise(answers: Sequence[JudgedAnswer]) -> Mapping[str, float]:
    """Means over the answers that have the figure, keyed without group: `reward`, `fluency`, components, lengths."""
    figures: dict[str, list[float]] = {}
    for answer in answers:
        found = {"reward": answer.reward, "fluency": answer.fluency, **answer.components}
        found["response_length"] = float(answer.num_tokens)
        found["truncated_ratio"] = float(answer.finish_reason is FinishReason.LENGTH)
        for name, value in found.items():
            if value is not None:
                figures.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in figures.items()}
