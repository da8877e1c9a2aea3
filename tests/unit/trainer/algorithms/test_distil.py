"""On-policy distillation: advantages by hand, a policy that becomes its teacher: another model, or itself informed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from raylign.data.batching import shard
from raylign.data.experience import StageOutputs, assemble, pack_groups
from raylign.data.types import (
    Completion,
    FinishReason,
    Prompt,
    Reward,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    ScoredBatch,
    TokenBatch,
    TokenOutputs,
    VersionSpan,
)
from raylign.trainer.algorithms.distil import Distil, DistilConfig
from raylign.trainer.functional.logprobs import linear_logprobs
from raylign.trainer.workers.forward_plan import as_teacher, realigned, scatter_tokens
from torch import Tensor

SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=3)
VOCAB, ANSWER, STEPS = 8, 3, 120


def scored(log_r: list[float]) -> ScoredBatch:
    """An answer of three tokens with these log-ratios of teacher to policy, and one of one; each after one token."""
    tokens = TokenBatch.from_sequences([[0] * 4, [0] * 2], [[False, True, True, True], [False, True]])
    flat = torch.tensor([9.0, *log_r, 9.0, 0.0])  # off-mask entries are never read
    policy = torch.where(tokens.response_mask, -1.0, 0.0)
    group = torch.tensor([0, 0])
    return ScoredBatch(tokens, group, torch.tensor([3.0, 1.0]), torch.zeros(2).bool(), policy, policy + flat, None)


def test_advantages_by_hand() -> None:
    batch, log_r = scored([0.5, -1.0, -20.0]), [0.5, -1.0, -20.0]
    plain = Distil(DistilConfig()).estimate(batch, kl_coef=2.0)
    assert plain.advantages.tolist() == pytest.approx([0, 1.0, -2.0, -20.0, 0, 0])  # kl_clamp is 10
    assert plain.metrics["policy/kl"] == pytest.approx((20.5 + 0) / 2)
    assert plain.metrics["distil/teacher_logprob"] == pytest.approx((-4 + sum(log_r)) / 4)
    half = Distil(DistilConfig(beta=0.5)).estimate(batch, kl_coef=1.0).advantages
    assert half[1:4].tolist() == pytest.approx([2 * math.log(0.5 * math.exp(x) + 0.5) for x in log_r])
    own = [math.exp(x) - 1 - x for x in log_r]
    assert plain.metrics["distil/divergence"] == pytest.approx(sum(own) / 4)
    later = Distil(DistilConfig(discount=0.5, kl_clamp=0)).estimate(batch, kl_coef=1.0).advantages
    assert later[1:4].tolist() == pytest.approx([0.5 - 0.5 * own[1] - 0.25 * own[2], -1.0 - 0.5 * own[2], -20.0])
    rewarded = Distil(DistilConfig(reward_coef=0.1)).estimate(batch, kl_coef=0.0).advantages
    assert rewarded.tolist() == pytest.approx([0, 0.1, 0.1, 0.1, 0, -0.1])
    with pytest.raises(ValueError, match="needs the teacher's log-probs"):
        Distil(DistilConfig()).estimate(replace(batch, ref_logprobs=None), kl_coef=1.0)


class Table:
    """A model in which the token before decides the next one's distribution."""

    def __init__(self, seed: int) -> None:
        gen = torch.Generator().manual_seed(seed)
        self.embedding = torch.eye(VOCAB)
        self.head = (1.5 * torch.randn(VOCAB, VOCAB, generator=gen)).requires_grad_()

    def outputs(self, tokens: TokenBatch) -> TokenOutputs:
        at = tokens.response_mask.nonzero()[:, 0]
        hidden = self.embedding[tokens.input_ids[at - 1]]
        found = linear_logprobs(hidden, self.head, tokens.input_ids[at], temperature=1.0)
        blank = torch.zeros(tokens.num_tokens)
        return TokenOutputs(
            blank.index_put((at,), found[0]), blank.index_put((at,), found[1]), tokens.response_mask.clone()
        )

    def after(self, token: int) -> Tensor:
        return (self.embedding[token] @ self.head.T).detach().softmax(-1)

    def sample(self, prompt: Prompt, count: int, gen: torch.Generator, length: int = ANSWER) -> RolloutGroup:
        chances = (self.embedding @ self.head.T).detach().softmax(-1)  # a row a token
        drawn = [torch.full((count,), prompt.token_ids[-1])]
        for _ in range(length):
            drawn.append(torch.multinomial(chances[drawn[-1]], 1, generator=gen)[:, 0])
        logprobs = [chances[a, b].log() for a, b in pairwise(drawn)]
        made, spans = [], (VersionSpan(0, 0, length),)
        for k, (ids, own) in enumerate(zip(rows(drawn[1:]), rows(logprobs), strict=True)):
            key = SampleKey(0, prompt.prompt_id, k)
            made.append(Completion(key, tuple(ids), tuple(own), FinishReason.LENGTH, spans, ""))
        return RolloutGroup(prompt, SAMPLING, tuple(made))


def rows(columns: Sequence[Tensor]) -> list[list[Any]]:
    """Columns `[count]`, one a position, as one list a row."""
    return torch.stack(list(columns), 1).tolist()


def teacher_says(teacher: Table, groups: Sequence[RolloutGroup]) -> list[Tensor]:
    """As the reference's ranks find it: after the teacher's prompts, in the places of the policy's tokens."""
    seen, tokens, sizes = pack_groups(as_teacher(groups)), pack_groups(groups), [len(g.completions) for g in groups]
    parts = scatter_tokens([teacher.outputs(seen).logprobs.detach()], [range(seen.num_sequences)], seen, sizes)
    return realigned(parts, seen, tokens, sizes)


def distil(
    policy: Table,
    teacher: Table,
    prompts: Sequence[Prompt],
    config: DistilConfig,
    *,
    length: int = ANSWER,
    steps: int = STEPS,
) -> list[float]:
    """The divergence of each step."""
    algorithm, gen, found = Distil(config), torch.Generator().manual_seed(1), []
    optimizer = torch.optim.Adam([policy.head], lr=0.05)
    for step in range(STEPS):
        groups = [policy.sample(prompt, 16, gen, length) for prompt in prompts]
        outcomes = [Reward(c.key, 0.0, {}) for g in groups for c in g.completions]
        own = [policy.outputs(pack_groups([g])).logprobs.detach() for g in groups]
        stages = StageOutputs(own, teacher_says(teacher, groups), None)
        made = assemble(groups, outcomes, stages, algorithm, kl_coef=1.0)
        found.append(made.metrics["distil/divergence"])
        (rank,) = shard(made.policy, num_ranks=1, units_per_update=len(outcomes), micro_batch_tokens=99, seed=step)
        for window in rank.windows:
            optimizer.zero_grad()
            for batch in window.micro_batches:
                algorithm.policy_loss(
                    policy.outputs(batch.tokens), batch, window.denominators, kl_coef=1.0
                ).loss.backward()
            optimizer.step()
    return found


@pytest.mark.parametrize("config", [DistilConfig(), DistilConfig(beta=0.5), DistilConfig(beta=0.1, discount=0.5)])
@pytest.mark.slow
def test_a_policy_becomes_its_teacher(config: DistilConfig) -> None:
    policy, teacher = Table(0), Table(1)
    found = distil(policy, teacher, [Prompt(f"p{i}", (), (i,)) for i in range(VOCAB)], config)
    assert sum(found[-10:]) < 0.08 * sum(found[:10]), (found[:10], found[-10:])
    assert (policy.after(3) - teacher.after(3)).abs().max() < 0.12


def test_a_correction_in_the_teachers_context_teaches_without_becoming_a_text() -> None:
    """The teacher is the start itself, after token 6; the policy answers after token 5 as it would after 6."""
    policy, start = Table(0), Table(0)
    informed = Prompt("p", (), (1, 5), teacher_ids=(1, 5, 2, 6))
    found = distil(policy, start, [informed, Prompt("q", (), (3,))], DistilConfig(), length=1)
    assert sum(found[-10:]) < 0.2 * sum(found[:10]), (found[:10], found[-10:])
    assert policy.after(5)[5] < 0.1 < start.after(5)[5] - 0.4, "what the correction rules out is not said any more"
    assert (policy.after(3) - start.after(3)).abs().max() < 0.05, "a prompt without a correction stays as it was"


def test_the_teachers_numbers_stand_in_the_places_of_the_policys_tokens() -> None:
    table, gen = Table(4), torch.Generator().manual_seed(2)
    prompts = [Prompt("a", (), (1, 2), teacher_ids=(7, 7, 7, 3)), Prompt("b", (), (4,))]
    groups = [table.sample(prompt, 2, gen) for prompt in prompts]
    for group, found in zip(groups, teacher_says(table, groups), strict=True):
        own = table.outputs(pack_groups([group])).logprobs.detach().view(2, -1)
        asked = group.prompt.teacher_ids or group.prompt.token_ids
        firsts = [float(table.after(asked[-1])[c.response_ids[0]].log()) for c in group.completions]
        got, size = found.view(2, -1), len(group.prompt.token_ids)
        assert got[:, :size].abs().max() == 0
        assert got[:, size].tolist() == pytest.approx(firsts)
        torch.testing.assert_close(got[:, size + 1 :], own[:, size + 1 :])


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (DistilConfig(beta=1.5), "beta"), (DistilConfig(discount=-0.1), "discount"),
        (DistilConfig(reward_coef=-1.0), "reward_coef"), (DistilConfig(kl_coef=0.0), "kl_coef"),
        (DistilConfig(kl_in_loss=True), "kl_in_loss"),
    ],
)  # fmt: skip
def test_impossible_values_are_told(config: DistilConfig, key: str) -> None:
    (problem,) = config.check()
    assert problem.startswith(f"algorithm.{key}") and "set" in problem
