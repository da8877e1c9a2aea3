"""The same loss and gradient for any micro-batch split, rank count, packing and row order, for every objective.

A toy model (an embedding and the fused head) stands in for the transformer; ranks are simulated by summing what each
would contribute. The truth is a plain loop over sequences and tokens in float64 that shares no code with the product.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from raylign.conf.schema import (
    ImportanceMode,
    KLEstimator,
    LossAggregation,
    OldLogprobs,
    PolicyObjectiveKind,
    RatioLevel,
)
from raylign.data.batching import shard
from raylign.data.types import CriticExperience, Denominators, PairBatch, PolicyExperience, TokenBatch, TokenOutputs
from raylign.trainer.algorithms.base import LossOutput
from raylign.trainer.algorithms.grpo import GRPO, GRPOConfig
from raylign.trainer.algorithms.online import OnlineConfig
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
from raylign.trainer.functional.logprobs import fused_linear_logprobs
from torch import Tensor

VOCAB, WIDTH, SEQUENCES = 12, 6, 14
KL_COEF = 0.3
SPLITS = [(1, 10_000, 0), (1, 1, 1), (1, 17, 2), (2, 17, 3), (3, 9, 4), (5, 30, 5), (20, 12, 6)]  # ranks, budget, seed


class ToyPolicy:
    """Each token is predicted from its predecessor alone."""

    def __init__(self) -> None:
        gen = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(VOCAB, WIDTH, generator=gen, dtype=torch.float64, requires_grad=True)
        self.head = torch.randn(VOCAB, WIDTH, generator=gen, dtype=torch.float64, requires_grad=True)

    def __call__(self, tokens: TokenBatch) -> TokenOutputs:
        at = tokens.response_mask.nonzero()[:, 0]
        logprobs, entropy, first = fused_linear_logprobs(
            self.embedding[tokens.input_ids[at - 1]],
            self.head,
            tokens.input_ids[at],
            temperature=0.9,
            block_bytes=50 * 8,
        )
        blank = torch.zeros(tokens.num_tokens, dtype=torch.float64)
        return TokenOutputs(
            blank.index_put((at,), logprobs),
            blank.index_put((at,), entropy),
            tokens.response_mask.index_put((at,), first),
        )


def _tokens(rng: random.Random, count: int = SEQUENCES) -> TokenBatch:
    """Prompts of 1-3 tokens, responses with holes (tool answers); one response is empty."""
    ids, masks = [], []
    for s in range(count):
        prompt, response = rng.randint(1, 3), 0 if s == 4 else rng.randint(1, 9)
        ids.append([rng.randrange(VOCAB) for _ in range(prompt + response)])
        masks.append([False] * prompt + [rng.random() < 0.8 for _ in range(response)])
    return TokenBatch.from_sequences(ids, masks)


def _experience() -> PolicyExperience:
    tokens = _tokens(random.Random(7))
    gen = torch.Generator().manual_seed(1)
    now = ToyPolicy()(tokens).logprobs.detach()

    def near(scale: float) -> Tensor:
        noise = torch.randn(tokens.num_tokens, generator=gen, dtype=torch.float64)
        return torch.where(tokens.response_mask, now + scale * noise, 0)

    advantages = torch.randn(tokens.num_tokens, generator=gen, dtype=torch.float64)  # off-mask too: never read
    return PolicyExperience(tokens, near(0.3), near(0.4), near(0.6), advantages)


CONFIGS: dict[str, OnlineConfig] = {
    "ppo": PPOConfig(),
    "clip higher, dual clip, entropy": PPOConfig(clip_eps_low=0.1, clip_eps_high=0.3, dual_clip=1.4, entropy_coef=0.02),
    "engine log-probs": PPOConfig(old_logprobs=OldLogprobs.engine, importance_cap=1.5),
    "no correction": PPOConfig(importance_cap=0.0),
    "k1 in loss": GRPOConfig(kl_estimator=KLEstimator.k1),
    "k2 in loss": GRPOConfig(kl_estimator=KLEstimator.k2, importance_cap=0.0),
    "k3 in loss": GRPOConfig(kl_estimator=KLEstimator.k3, kl_clamp=0.5),
    "sequence mean": GRPOConfig(loss_aggregation=LossAggregation.sequence_mean),
}

VARIANTS: dict[str, PPOConfig] = {
    "gspo": PPOConfig(
        ratio_level=RatioLevel.sequence,
        loss_aggregation=LossAggregation.sequence_mean,
        clip_eps_low=0.05,
        clip_eps_high=0.08,
    ),
    "cispo": PPOConfig(objective=PolicyObjectiveKind.cispo, clip_eps_low=0.3, clip_eps_high=0.2),
    "dr. grpo": PPOConfig(loss_aggregation=LossAggregation.constant_length, constant_length=40),
    "token mask": PPOConfig(importance_mode=ImportanceMode.mask_tokens, importance_cap=1.3, importance_floor=0.7),
    "sequence mask": PPOConfig(importance_mode=ImportanceMode.mask_sequences, importance_cap=1.1, importance_floor=0.9),
}


def _policy_loss(config: OnlineConfig, outputs: TokenOutputs, batch: PolicyExperience, d: Denominators) -> LossOutput:
    algorithm = PPO(config) if isinstance(config, PPOConfig) else GRPO(config)
    return algorithm.policy_loss(outputs, batch, d, kl_coef=KL_COEF)


@dataclass
class SlowPolicyLoss:
    """One token at a time, in Python; value and d loss / d logprob, d loss / d entropy by hand-derived formulas."""

    config: OnlineConfig

    def token(self, logp: float, old: float, rollout: float, ref: float, a: float) -> tuple[float, float]:
        c = self.config
        cap = c.importance_cap or math.inf
        r = math.exp(logp - old)
        inside = min(max(r, 1 - c.clip_eps_low), 1 + c.clip_eps_high)
        value, slope = (-a * r, -a * r) if -a * r >= -a * inside else (-a * inside, 0.0)
        ceiling = c.dual_clip or math.inf
        if c.old_logprobs is OldLogprobs.engine:
            ceiling = min(ceiling, cap)
        if a < 0 and value > -a * ceiling:
            value, slope = -a * ceiling, 0.0
        weight = min(math.exp(old - rollout), cap) if c.importance_cap else 1.0
        value, slope = value * weight, slope * weight
        if c.kl_in_loss:
            x = logp - ref
            kl = {"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}[c.kl_estimator.value]
            w = min(r * weight, cap)
            value += KL_COEF * w * min(max(kl, -c.kl_clamp), c.kl_clamp)
            slope += KL_COEF * w * min(max(x, -c.kl_clamp), c.kl_clamp)
        return value, slope

    def __call__(self, outputs: TokenOutputs, batch: PolicyExperience) -> tuple[float, Tensor, Tensor]:
        starts, mask = batch.tokens.cu_seqlens.tolist(), batch.tokens.response_mask.tolist()
        rows = [[t for t in range(a, b) if mask[t]] for a, b in pairwise(starts)]
        by_sequence = self.config.loss_aggregation is LossAggregation.sequence_mean
        total, to_logprobs, to_entropy = 0.0, torch.zeros(len(mask)).double(), torch.zeros(len(mask)).double()
        for row in rows:
            for t in row:
                share = 1 / (len(row) * sum(map(bool, rows))) if by_sequence else 1 / sum(map(len, rows))
                fields = (outputs.logprobs, batch.old_logprobs, batch.rollout_logprobs, batch.ref_logprobs)
                value, slope = self.token(*(float(f.detach()[t]) for f in fields), float(batch.advantages[t]))
                total += share * (value - self.config.entropy_coef * float(outputs.entropy.detach()[t]))
                to_logprobs[t] = share * slope
                to_entropy[t] = -share * self.config.entropy_coef
        return total, to_logprobs, to_entropy


@pytest.mark.parametrize("name", CONFIGS)
def test_policy_loss_and_gradient_equal_the_slow_truth_however_split(name: str) -> None:
    config, batch = CONFIGS[name], _experience()
    model = ToyPolicy()
    outputs = model(batch.tokens)
    want, to_logprobs, to_entropy = SlowPolicyLoss(config)(outputs, batch)
    want_grads = torch.autograd.grad(
        [outputs.logprobs, outputs.entropy], [model.embedding, model.head], [to_logprobs, to_entropy]
    )
    reference: dict[str, float] = {}
    for num_ranks, budget, seed in SPLITS:
        shards = shard(batch, num_ranks=num_ranks, units_per_update=99, micro_batch_tokens=budget, seed=seed)
        parts = [
            _policy_loss(config, model(m.tokens), m, s.windows[0].denominators)
            for s in shards
            for m in s.windows[0].micro_batches
        ]
        loss = sum(p.loss for p in parts)
        grads = torch.autograd.grad(loss, [model.embedding, model.head])
        assert loss.item() == pytest.approx(want, rel=1e-9)
        for a, b in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        metrics = {k: _merged([p.metrics[k] for p in parts]) for k in parts[0].metrics}
        assert metrics == pytest.approx(reference or metrics, rel=1e-5)
        reference = metrics
    assert reference["entropy"] == pytest.approx(
        float(outputs.entropy.detach()[batch.tokens.response_mask].mean()), 1e-5
    )
    assert 0 < reference["clip_fraction"] < 1


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_equals_its_formula_however_split(name: str) -> None:
    """The truth goes response by response, in the papers' notation; its gradient by log-prob is autograd's."""
    config, batch, model = VARIANTS[name], _experience(), ToyPolicy()
    outputs = model(batch.tokens)
    leaf = outputs.logprobs.detach().requires_grad_()
    want, masked = _slow_variant(config, leaf, batch)
    (to_logprobs,) = torch.autograd.grad(want, leaf)
    want_grads = torch.autograd.grad([outputs.logprobs], [model.embedding, model.head], [to_logprobs])
    for num_ranks, budget, seed in SPLITS:
        shards = shard(batch, num_ranks=num_ranks, units_per_update=99, micro_batch_tokens=budget, seed=seed)
        parts = [
            _policy_loss(config, model(m.tokens), m, s.windows[0].denominators)
            for s in shards
            for m in s.windows[0].micro_batches
        ]
        loss = sum(p.loss for p in parts)
        assert loss.item() == pytest.approx(want.item(), rel=1e-9)
        for a, b in zip(torch.autograd.grad(loss, [model.embedding, model.head]), want_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert _merged([p.metrics["importance_masked"] for p in parts]) == pytest.approx(masked, rel=1e-6)
    assert (masked > 0) == ("mask" in name), "the case must leave out some tokens, and only a masking one may"


def _slow_variant(c: PPOConfig, logprobs: Tensor, batch: PolicyExperience) -> tuple[Tensor, float]:
    starts, mask = batch.tokens.cu_seqlens.tolist(), batch.tokens.response_mask.tolist()
    rows = [row for a, b in pairwise(starts) if (row := [t for t in range(a, b) if mask[t]])]
    num_tokens, left_out, total = sum(map(len, rows)), 0, torch.zeros(()).double()
    assert batch.old_logprobs is not None
    for row in rows:
        gaps = [float(batch.old_logprobs[t] - batch.rollout_logprobs[t]) for t in row]
        geometric = math.exp(sum(gaps) / len(gaps))
        s_i = torch.stack([logprobs[t] - batch.old_logprobs[t] for t in row]).mean().exp()
        for t, gap in zip(row, gaps, strict=True):
            a, r = float(batch.advantages[t]), (logprobs[t] - batch.old_logprobs[t]).exp()
            low, high = 1 - c.clip_eps_low, 1 + c.clip_eps_high
            if c.objective is PolicyObjectiveKind.cispo:
                j = min(max(float(r.detach()), low), high) * a * logprobs[t]
            else:
                r = s_i if c.ratio_level is RatioLevel.sequence else r
                j = torch.minimum(r * a, r.clamp(low, high) * a)
            judged = {"mask_tokens": math.exp(gap), "mask_sequences": geometric}.get(c.importance_mode.value)
            w = min(math.exp(gap), c.importance_cap)
            if judged is not None and not c.importance_floor <= judged <= c.importance_cap:
                w, left_out = 0.0, left_out + 1
            share = {
                "token_mean": 1 / num_tokens,
                "sequence_mean": 1 / len(row) / len(rows),
                "constant_length": 1 / max(1, c.constant_length) / len(rows),
            }[c.loss_aggregation.value]
            total = total - share * w * j
    return total, left_out / num_tokens


def _merged(sums: list) -> float:
    return sum(s.total.item() for s in sums) / sum(s.count.item() for s in sums)


def test_value_loss_and_gradient_equal_the_slow_truth_however_split() -> None:
    tokens, gen = _tokens(random.Random(9)), torch.Generator().manual_seed(2)
    mask = tokens.response_mask
    old, returns = (torch.where(mask, torch.randn(mask.numel(), generator=gen).double(), 0) for _ in range(2))
    table = torch.randn(VOCAB, generator=gen).double().requires_grad_()
    batch = CriticExperience(tokens, old, returns)
    want, want_grad = 0.0, [0.0] * VOCAB
    for t in mask.nonzero()[:, 0].tolist():
        token, o, r = int(tokens.input_ids[t - 1]), float(old[t]), float(returns[t])
        v = float(table.detach()[token])
        bounded = o + min(max(v - o, -0.2), 0.2)
        want += 0.5 * max((v - r) ** 2, (bounded - r) ** 2) / int(mask.sum())
        if (v - r) ** 2 >= (bounded - r) ** 2:
            want_grad[token] += (v - r) / int(mask.sum())
    for num_ranks, budget, seed in SPLITS:
        total = torch.zeros(()).double()
        for s in shard(batch, num_ranks=num_ranks, units_per_update=99, micro_batch_tokens=budget, seed=seed):
            for m in s.windows[0].micro_batches:
                values = torch.where(m.tokens.response_mask, table[m.tokens.input_ids.roll(1)], 0)
                total = total + PPO(PPOConfig(value_clip=0.2)).value_loss(values, m, s.windows[0].denominators).loss
        (grad,) = torch.autograd.grad(total, table)
        assert total.item() == pytest.approx(want, rel=1e-9)
        assert grad.tolist() == pytest.approx(want_grad, rel=1e-9)


def test_pair_loss_and_gradient_equal_the_slow_truth_however_split() -> None:
    rng, gen = random.Random(3), torch.Generator().manual_seed(4)
    ids = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))] for _ in range(22)]
    tokens = TokenBatch.from_sequences(ids, [[True] * len(row) for row in ids])
    batch = PairBatch(tokens, torch.rand(11, generator=gen).double(), 0.5 + torch.rand(11, generator=gen).double())
    table = torch.randn(VOCAB, generator=gen).double().requires_grad_()
    want, want_grad = 0.0, [0.0] * VOCAB
    for p, (chosen, rejected) in enumerate(zip(ids[::2], ids[1::2], strict=True)):
        c, r = float(table.detach()[chosen[-1]]), float(table.detach()[rejected[-1]])
        m, w = float(batch.margin[p]), float(batch.weight[p])
        want += w * (math.log1p(math.exp(-(c - r - m))) + 0.01 * (c + r) ** 2) / 11
        down = 1 / (1 + math.exp(c - r - m))
        want_grad[chosen[-1]] += w * (-down + 0.02 * (c + r)) / 11
        want_grad[rejected[-1]] += w * (down + 0.02 * (c + r)) / 11
    algorithm = RewardModelling(RMConfig(use_margin=True, centering_coef=0.01))
    for num_ranks, budget, seed in SPLITS:
        total = torch.zeros(()).double()
        for s in shard(batch, num_ranks=num_ranks, units_per_update=99, micro_batch_tokens=budget, seed=seed):
            for m in s.windows[0].micro_batches:
                scores = table[m.tokens.input_ids[m.tokens.cu_seqlens[1:].long() - 1]]
                total = total + algorithm.loss(scores, m, s.windows[0].denominators).loss
        (grad,) = torch.autograd.grad(total, table)
        assert total.item() == pytest.approx(want, rel=1e-9)
        assert grad.tolist() == pytest.approx(want_grad, rel=1e-9, abs=1e-12)


def test_filler_has_no_loss_no_gradient_and_no_weight_in_a_metric() -> None:
    model, batch = ToyPolicy(), _experience().filler()
    output = _policy_loss(GRPOConfig(), model(batch.tokens), batch, Denominators(10.0, 2.0))
    grads = torch.autograd.grad(output.loss, [model.embedding, model.head])
    assert output.loss == 0 and not any(g.any() for g in grads)
    assert all(m.count == 0 and m.total == 0 for m in output.metrics.values())


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if c.old_logprobs is not OldLogprobs.engine])
def test_the_updates_own_logprobs_give_what_a_pass_before_it_gives(name: str) -> None:
    """One optimizer step a batch: loss, gradient, and the figures that the pass would have measured."""
    config, batch, model = CONFIGS[name], _experience(), ToyPolicy()
    before = torch.where(batch.tokens.response_mask, model(batch.tokens).logprobs.detach(), 0)
    count = int(batch.tokens.response_mask.sum())
    denominators = Denominators(float(count), float(SEQUENCES))

    def run(old: Tensor | None) -> tuple[LossOutput, tuple[Tensor, ...]]:
        output = _policy_loss(config, model(batch.tokens), replace(batch, old_logprobs=old), denominators)
        return output, torch.autograd.grad(output.loss, [model.embedding, model.head])

    own, own_gradient = run(None)
    recomputed, gradient = run(before)
    assert own.loss == recomputed.loss and all(map(torch.equal, own_gradient, gradient))
    assert all(own.metrics[name].total == metric.total for name, metric in recomputed.metrics.items())
    gap = (before - batch.rollout_logprobs)[batch.tokens.response_mask].abs()
    measured = own.metrics["rollout/logprob_gap"]
    torch.testing.assert_close(measured.total / measured.count, gap.mean().float())
    torch.testing.assert_close(own.maxima["rollout/logprob_gap_max"], gap.max().float())
    kls = torch.where(batch.tokens.response_mask, before - batch.ref_logprobs, 0)
    bounds = batch.tokens.cu_seqlens.tolist()
    kl = torch.stack([kls[first:last].sum() for first, last in pairwise(bounds)]).float()
    sequences = sum(any(mask) for _, mask in batch.tokens.sequences())
    for name, total in (("kl", kl.sum()), ("kl_square", kl.square().sum())):
        assert own.metrics[name].count == sequences
        torch.testing.assert_close(own.metrics[name].total, total)


def test_old_policy_gives_the_reinforce_gradient() -> None:
    batch = _experience()
    model = ToyPolicy()
    outputs = model(batch.tokens)
    same = replace(batch, old_logprobs=outputs.logprobs.detach(), rollout_logprobs=outputs.logprobs.detach())
    count = int(batch.tokens.response_mask.sum())
    denominators = Denominators(float(count), float(SEQUENCES))
    loss = _policy_loss(PPOConfig(), outputs, same, denominators).loss
    reinforce = -(batch.advantages * outputs.logprobs).sum() / count
    grads = torch.autograd.grad(loss, [model.embedding, model.head], retain_graph=True)
    want = torch.autograd.grad(reinforce, [model.embedding, model.head])
    for a, b in zip(grads, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
