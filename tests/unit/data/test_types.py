"""The batch types: selection keeps every per-token tensor with its token."""

from __future__ import annotations

import pytest
import torch
from raylign.data.types import CriticExperience, Message, PairBatch, PolicyExperience, Prompt, TokenBatch


def _tokens() -> TokenBatch:
    return TokenBatch.from_sequences(
        [[10, 11, 12], [20], [30, 31], [40, 41, 42, 43]],
        [[False, True, True], [True], [False, True], [False, False, True, True]],
    )


def test_sequences_lie_end_to_end() -> None:
    tokens = _tokens()
    assert tokens.input_ids.tolist() == [10, 11, 12, 20, 30, 31, 40, 41, 42, 43]
    assert tokens.cu_seqlens.tolist() == [0, 3, 4, 6, 10]
    assert (tokens.num_sequences, tokens.num_tokens, tokens.lengths.tolist()) == (4, 10, [3, 1, 2, 4])
    assert tokens.cu_seqlens.dtype is torch.int32 and tokens.input_ids.dtype is torch.int64


def test_select_takes_rows_in_the_order_asked() -> None:
    chosen = _tokens().select([3, 0])
    assert chosen.input_ids.tolist() == [40, 41, 42, 43, 10, 11, 12]
    assert chosen.cu_seqlens.tolist() == [0, 4, 7]
    assert chosen.response_mask.tolist() == [False, False, True, True, False, True, True]
    assert chosen.cu_seqlens.dtype is torch.int32
    assert _tokens().select([]).num_sequences == 0


def test_no_sequences_make_an_empty_batch() -> None:
    empty = TokenBatch.from_sequences([], [])
    assert (empty.num_sequences, empty.num_tokens) == (0, 0)


def test_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens has a mask of 2"):
        TokenBatch.from_sequences([[1, 2, 3]], [[True, False]])


def test_experience_moves_every_tensor_with_its_token() -> None:
    tokens = _tokens()
    at = torch.arange(10.0)
    policy = PolicyExperience(tokens, at, at + 100, None, at + 200).select([2, 1])
    assert policy.old_logprobs.tolist() == [4, 5, 3]
    assert policy.rollout_logprobs.tolist() == [104, 105, 103]
    assert policy.advantages.tolist() == [204, 205, 203]
    assert policy.ref_logprobs is None
    assert [unit.tokens for unit in policy.units()] == [2, 1]
    critic = CriticExperience(tokens, at, at + 100).select([1, 3])
    assert critic.old_values.tolist() == [3, 6, 7, 8, 9]
    assert critic.returns.tolist() == [103, 106, 107, 108, 109]


def test_filler_is_the_shortest_and_trains_nothing() -> None:
    at = torch.arange(10.0)
    for batch in (PolicyExperience(_tokens(), at, at, at, at), CriticExperience(_tokens(), at, at)):
        filler = batch.filler()
        assert filler.tokens.input_ids.tolist() == [20]
        assert not filler.tokens.response_mask.any()
    assert _tokens().response_mask.sum() == 6  # the batch itself is untouched


def test_pairs_select_both_sides() -> None:
    pairs = PairBatch(_tokens(), torch.tensor([0.5, 1.5]), torch.tensor([1.0, 2.0]))
    assert [unit.tokens for unit in pairs.units()] == [4, 6]
    second = pairs.select([1])
    assert second.tokens.input_ids.tolist() == [30, 31, 40, 41, 42, 43]
    assert (second.margin.tolist(), second.weight.tolist()) == ([1.5], [2.0])
    filler = pairs.filler()
    assert filler.tokens.input_ids.tolist() == [10, 11, 12, 20]
    assert filler.weight.tolist() == [0] and not filler.tokens.response_mask.any()


def test_prompt_text_is_the_last_user_turn() -> None:
    turns = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert Prompt("p", turns, (1,)).text == "c"
    assert Prompt("p", turns[:1], (1,)).text == ""
