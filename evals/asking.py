"""Asks an engine a suite and grades what it says. Knows the protocols of engine and scorer, no Ray and no vLLM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from raylign.conf.suites import SuiteConfig
from raylign.data.types import Prompt, Reward, RewardOutcome, RolloutGroup, SampleKey, SamplingParams
from raylign.evals.results import PromptScore
from raylign.evals.slices import names_in
from raylign.evals.suites import Text
from raylign.rollout.interfaces import GenerationRequest, RolloutEngine

SEED = 0
"""Of sampled answers: both sides of a comparison draw from the same stream."""


class Scorer(Protocol):
    """reward.scorer.ComposedScorer's face."""

    def score(self, groups: Sequence[RolloutGroup]) -> list[RewardOutcome]:
        """One outcome a completion, in order."""
        ...


async def answers(
    engine: RolloutEngine, config: SuiteConfig, prompts: Sequence[Prompt], stop_token_ids: tuple[int, ...]
) -> list[RolloutGroup]:
    """Every prompt answered `config.samples` times. Raises EngineDead."""
    sampling = SamplingParams(
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=SEED,
        stop_token_ids=stop_token_ids,
    )
    requests = [
        GenerationRequest(prompt, tuple(SampleKey(0, prompt.prompt_id, k) for k in range(config.samples)), sampling)
        for prompt in prompts
    ]
    return await engine.generate(requests)


def graded(config: SuiteConfig, groups: Sequence[RolloutGroup], outcomes: Sequence[RewardOutcome]) -> list[PromptScore]:
    """One score a prompt; `outcomes`: one a completion, in the order of `groups`."""
    rest, rows = iter(outcomes), []
    for group in groups:
        found = [next(rest) for _ in group.completions]
        failures = [one.reason for one in found if not isinstance(one, Reward)]
        rows.append(
            PromptScore(
                prompt_id=group.prompt.prompt_id,
                prompt=group.prompt.text,
                answers=tuple(completion.text for completion in group.completions),
                scores=tuple(_grade(config, one) for one in found),
                failure=failures[0] if failures else "",
                slices=names_in(group.prompt.columns),
            )
        )
    return rows


async def text_losses(engine: RolloutEngine, texts: Sequence[Text]) -> list[PromptScore]:
    """Log-prob of each text in bits a byte (negative; higher is better): of its tokens after the first.

    By bytes, so that models with other tokens can be compared; the first token has no log-prob unless the model has a
    beginning token, and its bytes count all the same.
    """
    scored = await engine.score_tokens([text.token_ids for text in texts], 1.0)
    return [
        PromptScore(
            text.row_id,
            text.text,
            (),
            (sum(logprobs) / math.log(2) / len(text.text.encode()),),
            slices=text.slices,
        )
        for text, logprobs in zip(texts, scored, strict=True)
    ]


def _grade(config: SuiteConfig, outcome: RewardOutcome) -> float | None:
    if not isinstance(outcome, Reward):
        return None
    return outcome.score if config.right_at is None else float(outcome.score >= config.right_at)
