"""Sequences that share a prompt: log-probs, values, losses and gradients are those of every sequence alone.

The truth is transformers' own forward, one sequence at a time, in float64; it knows nothing of packing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from raylign.data.types import CriticExperience, Denominators, PairBatch, PolicyExperience, TokenBatch, TokenOutputs
from raylign.trainer.algorithms.dpo import DPO, DPOConfig
from raylign.trainer.algorithms.grpo import GRPO, GRPOConfig
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
from raylign.trainer.functional import packing as packing_module
from raylign.trainer.functional.packing import pack
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.packed_attention import PACKED_ATTENTION
from raylign.trainer.models.scalar_head import ScalarModel, last_states, values_from_states
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "initializer_range": 0.3,  # attention far from uniform, so that a wrong key shows
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "window": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
}


def batch(*groups: tuple[int, list[int]], common: int = 0) -> TokenBatch:
    """Groups of (prompt tokens, answers' tokens); the first `common` tokens are the same in all of them."""
    generator = torch.Generator().manual_seed(3)

    def drawn(count: int) -> list[int]:
        return torch.randint(0, VOCAB, (count,), generator=generator).tolist()

    beginning, rows, masks = drawn(common), [], []
    for prompt_tokens, answers in groups:
        prompt = beginning + drawn(prompt_tokens - common)
        for answer in answers:
            rows.append(prompt + drawn(answer))
            masks.append([False] * prompt_tokens + [True] * answer)
    return TokenBatch.from_sequences(rows, masks)


def twice_the_same() -> TokenBatch:
    """Two equal sequences beside a third, and one that is only the beginning of them."""
    tokens = batch((7, [9, 4]))
    ids, mask = tokens.select([0]).input_ids.tolist(), tokens.select([0]).response_mask.tolist()
    other = tokens.select([1])
    return TokenBatch.from_sequences(
        [ids, ids, other.input_ids.tolist(), ids[:10]], [mask, mask, other.response_mask.tolist(), mask[:10]]
    )


BATCHES: dict[str, tuple[TokenBatch, int]] = {  # and the tokens that must be left to compute
    "pairs": (batch((12, [9, 5]), (20, [3, 30])), 26 + 53),
    "a group of 8": (batch((15, [8, 3, 8, 11, 1, 7, 8, 2])), 15 + 48),
    "groups of 4 and one alone": (batch((9, [4, 4, 4, 4]), (6, [5, 1, 2, 9]), (11, [6])), 25 + 23 + 17),
    "prompts that are partly equal": (batch((12, [9, 5]), (20, [3, 6]), common=8), 8 + 4 + 14 + 12 + 9),
    "prompts of one token": (batch((1, [4, 6]), (1, [3, 3])), 11 + 7),
    "answers of one token": (batch((10, [1, 1, 1, 1])), 14),
    "longer than a block of attention": (batch((80, [70, 3, 66, 20])), 239),
    "twice the same": (twice_the_same(), 7 + 9 + 4),
    "alone": (batch((5, [6]), (3, [8])), 22),
}


@pytest.fixture(autouse=True)
def _share_whatever_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_module.pack, "__kwdefaults__", {"min_saved": 0.0})


def _double(model: PreTrainedModel) -> PreTrainedModel:
    """In float64 throughout: transformers' norms would compute in float32 and round gradients to 7 digits."""
    model = model.double().eval()
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__.endswith("RMSNorm"):
                exact = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon, dtype=torch.float64)
                exact.weight = norm.weight
                setattr(parent, name, exact)
    return model


def _causal(name: str) -> tuple[CausalLM, PreTrainedModel]:
    """Ours and transformers' own, with the same weights."""
    kind, config = MODELS[name]
    torch.manual_seed(0)
    theirs = _double(kind(config))
    ours = copy.deepcopy(theirs)
    ours.set_attn_implementation(PACKED_ATTENTION)
    theirs.set_attn_implementation("sdpa")
    return CausalLM(ours), theirs


def _alone(model: PreTrainedModel, tokens: TokenBatch) -> TokenOutputs:
    """One sequence at a time."""
    logprobs, entropy, first = [], [], []
    for s in range(tokens.num_sequences):
        one = tokens.select([s])
        log_p = model(input_ids=one.input_ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        own = one.response_mask[1:]
        zero = log_p.new_zeros(1)
        chosen = log_p.gather(1, one.input_ids[1:, None])[:, 0]
        logprobs.append(torch.cat([zero, torch.where(own, chosen, 0)]))
        first.append(torch.cat([zero.bool(), own & (chosen == log_p.amax(-1))]))
        entropy.append(torch.cat([zero, torch.where(own, -(log_p.exp() * log_p).sum(-1), 0)]))
    return TokenOutputs(torch.cat(logprobs), torch.cat(entropy), torch.cat(first))


def _policy_loss(outputs: TokenOutputs, tokens: TokenBatch) -> Tensor:
    """GRPO with a KL term and an entropy bonus."""
    generator = torch.Generator().manual_seed(1)
    old, rollout, ref, advantages = (
        torch.where(tokens.response_mask, torch.randn(tokens.num_tokens, generator=generator).double(), 0)
        for _ in range(4)
    )
    now = outputs.logprobs.detach()
    made = PolicyExperience(tokens, now + 0.1 * old, now + 0.1 * rollout, now + 0.1 * ref, advantages)
    count = Denominators(float(tokens.response_mask.sum()), float(tokens.num_sequences))
    return GRPO(GRPOConfig(entropy_coef=0.1)).policy_loss(outputs, made, count, kl_coef=0.2).loss


def _pair_loss(outputs: TokenOutputs, tokens: TokenBatch) -> Tensor:
    pairs = tokens.num_sequences // 2
    made = PairBatch(tokens, torch.zeros(pairs), torch.ones(pairs), ref_logps=torch.full((2 * pairs,), -40.0).double())
    return DPO(DPOConfig(beta=0.1)).loss(outputs, made, Denominators(1.0, 2.0 * pairs)).loss


def _assert_same_gradients(ours: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    found = {name.removeprefix("hf."): p.grad for name, p in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(
            found[name], parameter.grad, atol=tolerance * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(
    ("model", "loss_of"), [("llama", _policy_loss), ("llama", _pair_loss), ("window", _policy_loss)]
)
def test_logprobs_loss_and_gradients_are_those_of_each_sequence_alone(
    name: str, model: str, loss_of: Callable[[TokenOutputs, TokenBatch], Tensor]
) -> None:
    tokens, computed = BATCHES[name]
    if loss_of is _pair_loss and tokens.num_sequences % 2:
        tokens = tokens.select(range(tokens.num_sequences - 1))
    else:
        assert pack(tokens).tokens.numel() == computed
    ours, theirs = _causal(model)
    found, expected = ours(tokens, temperature=1.0, with_entropy_grad=True), _alone(theirs, tokens)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-10, rtol=1e-10)
    mine, truth = loss_of(found, tokens), loss_of(expected, tokens)
    torch.testing.assert_close(mine, truth, atol=1e-10, rtol=1e-10)
    mine.backward()
    truth.backward()
    _assert_same_gradients(ours, theirs, 1e-10)


@pytest.mark.parametrize("name", BATCHES)
def test_values_scores_losses_and_gradients_are_those_of_each_sequence_alone(name: str) -> None:
    tokens, _ = BATCHES[name]
    tokens = tokens.select(range(tokens.num_sequences // 2 * 2 or 1))
    torch.manual_seed(0)
    theirs = _double(LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1)))
    kept = copy.deepcopy(theirs)
    kept.set_attn_implementation(PACKED_ATTENTION)
    ours = ScalarModel(kept)
    rows = [tokens.select([s]).input_ids[None] for s in range(tokens.num_sequences)]
    truth = torch.cat([theirs.score(theirs.model(input_ids=row, use_cache=False)[0])[0, :, 0] for row in rows])
    found = ours(tokens)
    torch.testing.assert_close(found.double(), truth, atol=1e-5, rtol=1e-5)  # the head is float32
    losses = []
    for states in (found, truth):
        made = CriticExperience(tokens, torch.zeros(tokens.num_tokens), torch.ones(tokens.num_tokens))
        values, counts = values_from_states(states, tokens).values, Denominators(9.0, 2.0)
        loss = PPO(PPOConfig(value_clip=0.0)).value_loss(values, made, counts).loss
        pairs = tokens.num_sequences // 2
        scored = PairBatch(tokens, torch.zeros(pairs), torch.ones(pairs))
        losses.append(loss + RewardModelling(RMConfig()).loss(last_states(states, tokens), scored, counts).loss)
    torch.testing.assert_close(losses[0].double(), losses[1].double(), atol=0, rtol=1e-5)
    for loss in losses:
        loss.backward()
    _assert_same_gradients(ours, theirs, 1e-5)


def test_a_known_gradient_and_checkpointed_activations_change_nothing() -> None:
    tokens, _ = BATCHES["a group of 8"]
    known = torch.randn(tokens.num_tokens, generator=torch.Generator().manual_seed(2)).double() * tokens.response_mask
    ours, theirs = _causal("llama")
    ours.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ours.train()
    (ours(tokens, temperature=1.0, logprob_grad=known).logprobs * known).sum().backward()
    (_alone(theirs, tokens).logprobs * known).sum().backward()
    _assert_same_gradients(ours, theirs, 1e-10)


@pytest.mark.parametrize("name", ["pairs", "groups of 4 and one alone"])
def test_the_neighbours_prompt_would_be_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: the last group attends to the first one's prompt, as long as both are."""
    tokens, _ = BATCHES[name]
    ours, theirs = _causal("llama")
    right = pack(tokens)
    last = right.paths[-1]
    wrong = right.rows.clone()
    wrong[last.start : last.start + 3] = right.rows[:3]
    monkeypatch.setattr("raylign.trainer.models.causal_lm.pack", lambda _: replace(right, rows=wrong))
    gap = (ours(tokens, temperature=1.0).logprobs - _alone(theirs, tokens).logprobs).detach().abs()
    assert float(gap[last.start :].max()) > 1e-3
