"""pass@k on held-out prompts: would at least one of k answers be right (Chen et al. 2021, arXiv:2107.03374, eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylign.data.types import Prompt, Reward, RewardOutcome, SamplingParams
from raylign.trainer.loops.interfaces import RewardScorer, RolloutPool

_EPOCH = -2
"""Of the sample keys, beside training (0 and more) and the single held-out answers (-1)."""


def pass_at_k(answers: int, right: int, k: int) -> float:
    """Unbiased estimate, from `answers` draws of which `right` are right, that one of k draws is: 1 - C(n-c,k)/C(n,k).

    The share of the k-subsets of the draws that hold a right one, computed exactly. Raises ValueError when there are
    fewer than k draws, for then there is no unbiased estimate.
    """
    if not 0 <= right <= answers or not 1 <= k <= answers:
        raise ValueError(f"pass@{k} of {right} right among {answers} answers is not defined")
    return 1.0 - math.comb(answers - right, k) / math.comb(answers, k)


def sizes(answers: int) -> tuple[int, ...]:
    """The k that are reported: powers of two up to `answers`, and `answers` itself."""
    powers = [2**i for i in range(answers.bit_length()) if 2**i <= answers]
    return tuple(sorted({*powers, answers})) if answers else ()


def summarise_passes(counts: Sequence[tuple[int, int]], answers: int) -> Mapping[str, float]:
    """Means over prompts of pass@k, keyed `pass@k`. `counts`: of each prompt the judged answers and the right ones.

    An answer whose reward failed is neither right nor wrong; a prompt with fewer than k judged ones is left out of
    pass@k, and a k that no prompt has enough for is left out as a whole.
    """
    found: dict[str, float] = {}
    for k in sizes(answers):
        values = [pass_at_k(judged, right, k) for judged, right in counts if judged >= k]
        if values:
            found[f"pass@{k}"] = sum(values) / len(values)
    return found


@dataclass(frozen=True, slots=True)
class PassEvaluator:
    """Draws `answers` answers to each prompt; right is one whose `component` (or whole reward) reaches `score`."""

    rollouts: RolloutPool
    reward: RewardScorer
    prompts: Sequence[Prompt]
    sampling: SamplingParams
    answers: int
    component: str  # empty: the reward itself
    score: float

    async def run(self) -> Mapping[str, float]:
        """`summarise_passes` of the present policy."""
        groups = await self.rollouts.generate(
            self.prompts, epoch=_EPOCH, samples_per_prompt=self.answers, sampling=self.sampling
        )
        outcomes = iter(await self.reward.score(groups))
        counts = []
        for group in groups:
            values = [self._value(next(outcomes)) for _ in group.metas]
            judged = [value for value in values if value is not None]
            counts.append((len(judged), sum(value >= self.score for value in judged)))
        return summarise_passes(counts, self.answers)

    def _value(self, outcome: RewardOutcome) -> float | None:
        if not isinstance(outcome, Reward):
            return None
        return outcome.components.get(self.component) if self.component else outcome.score
