"""pass@k against its definition by enumeration, its expectation against the truth, and failed rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, product

import pytest
from raylign.data.types import Prompt, Reward, RewardFailure, RewardOutcome, SampleKey, SamplingParams
from raylign.trainer.loops.interfaces import GroupHandle
from raylign.trainer.loops.pass_at_k import PassEvaluator, pass_at_k, sizes, summarise_passes


@pytest.mark.parametrize("answers", range(1, 8))
def test_it_is_the_share_of_subsets_with_a_right_answer(answers: int) -> None:
    for right in range(answers + 1):
        draws = [True] * right + [False] * (answers - right)
        for k in range(1, answers + 1):
            subsets = list(combinations(draws, k))
            assert pass_at_k(answers, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_its_expectation_is_the_true_chance() -> None:
    """Over all outcomes of five draws that are right with 3/10; the plug-in 1 - (1 - c/n)^k is biased, and seen so."""
    chance = Fraction(3, 10)
    for k in (1, 2, 3, 5):
        mean = plug_in = 0.0
        for draws in product((True, False), repeat=5):
            right = sum(draws)
            weight = float(chance**right * (1 - chance) ** (5 - right))
            mean += weight * pass_at_k(5, right, k)
            plug_in += weight * (1 - (1 - right / 5) ** k)
        truth = float(1 - (1 - chance) ** k)
        assert mean == pytest.approx(truth, abs=1e-12)
        assert k == 1 or abs(plug_in - truth) > 0.01


def test_large_numbers_are_exact_and_too_few_draws_are_refused() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, abs=1e-12)
    for answers, right, k in ((3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="is not defined"):
            pass_at_k(answers, right, k)


def test_which_k_are_reported() -> None:
    assert [sizes(n) for n in (0, 1, 3, 4, 10)] == [(), (1,), (1, 2, 3), (1, 2, 4), (1, 2, 4, 8, 10)]


def test_failed_rewards_are_neither_right_nor_wrong() -> None:
    found = summarise_passes([(4, 2), (2, 0), (0, 0)], 4)
    assert found == pytest.approx({"pass@1": (0.5 + 0) / 2, "pass@2": (5 / 6 + 0) / 2, "pass@4": 1.0})
    assert summarise_passes([(0, 0)], 4) == {}


class Answers:
    """Rollouts and rewards: the reward of answer k to prompt i is `table[i][k]`; None fails."""

    def __init__(self, table: Sequence[Sequence[float | None]]) -> None:
        self.table = table
        self.sampling: SamplingParams | None = None

    async def generate(self, prompts, *, epoch, samples_per_prompt, sampling, arrived=None):  # type: ignore[no-untyped-def]
        self.sampling = sampling
        return [
            GroupHandle(i, tuple(SampleKey(epoch, p.prompt_id, k) for k in range(samples_per_prompt)))  # type: ignore[arg-type]
            for i, p in enumerate(prompts)
        ]

    async def score(self, groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        found: list[RewardOutcome] = []
        for group in groups:
            for key in group.metas:
                value = self.table[int(key.prompt_id)][key.k]  # type: ignore[attr-defined]
                parts = {"right": value or 0.0}
                found.append(RewardFailure(key, "no") if value is None else Reward(key, 5.0, parts))  # type: ignore[arg-type]
        return found


@pytest.mark.parametrize(
    ("component", "wanted"),
    [("right", {"pass@1": (0.5 + 1 / 3) / 2, "pass@2": (5 / 6 + 2 / 3) / 2, "pass@4": 1.0}), ("", None)],
)
def test_the_evaluator_counts_each_prompts_own_answers(component: str, wanted: dict[str, float] | None) -> None:
    world = Answers([[1.0, 0.0, 1.0, 0.5], [None, 0.0, 1.0, 0.9]])
    sampling = SamplingParams(temperature=0.7, max_new_tokens=8)
    prompts = [Prompt("0", (), (1,)), Prompt("1", (), (1,))]
    evaluator = PassEvaluator(world, world, prompts, sampling, 4, component, 1.0)
    found = asyncio.run(evaluator.run())
    assert world.sampling is sampling
    assert found == pytest.approx(wanted or {"pass@1": 1.0, "pass@2": 1.0, "pass@4": 1.0})
