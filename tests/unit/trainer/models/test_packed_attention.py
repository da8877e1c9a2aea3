"""Packed attention: the logits of every sequence of a packed batch are those it gets alone."""

from __future__ import annotations

import pytest
import torch
from raylign.data.types import TokenBatch
from raylign.trainer.functional.packing import pack
from raylign.trainer.models.packed_attention import PACKED_ATTENTION, packed_states
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
ARCHITECTURES = [
    pytest.param(LlamaForCausalLM, LlamaConfig(**SIZES), id="llama"),
    pytest.param(Qwen2ForCausalLM, Qwen2Config(**SIZES), id="qwen2"),
    pytest.param(
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=0),
        id="qwen2-sliding-window",
    ),
]
LENGTHS = (5, 1, 13, 8)


def _batch() -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 97, (n,), generator=generator).tolist() for n in LENGTHS]
    return TokenBatch.from_sequences(rows, [[False] * len(r) for r in rows])


def _model(kind: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    # weights far from the initial 0.02, so that attention is not nearly uniform and a leak would show
    config.initializer_range = 0.3
    return kind(config).to(dtype).eval()


def _packed_logits(model: PreTrainedModel, tokens: TokenBatch) -> Tensor:
    return model.lm_head(packed_states(model.model, tokens, pack(tokens)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("kind", "config"), ARCHITECTURES)
def test_packed_logits_equal_each_sequence_alone(
    kind: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype, tolerance: float
) -> None:
    model = _model(kind, config, dtype)
    tokens = _batch()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        alone = [
            model(input_ids=tokens.select([s]).input_ids[None], use_cache=False).logits[0]
            for s in range(tokens.num_sequences)
        ]
        model.set_attn_implementation(PACKED_ATTENTION)
        packed = _packed_logits(model, tokens)
    expected = torch.cat(alone)
    assert expected.std() > 0.1
    torch.testing.assert_close(packed, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


def test_packed_gradients_equal_each_sequence_alone() -> None:
    model = _model(LlamaForCausalLM, LlamaConfig(**SIZES), torch.float64)
    tokens = _batch()
    weights = torch.randn(tokens.num_tokens, 97, dtype=torch.float64)

    model.set_attn_implementation(PACKED_ATTENTION)
    (_packed_logits(model, tokens) * weights).sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    for s, part in enumerate(weights.split(list(LENGTHS))):
        (model(input_ids=tokens.select([s]).input_ids[None], use_cache=False).logits[0] * part).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=1e-9, rtol=1e-9)


def test_a_call_without_packing_is_refused() -> None:
    model = _model(LlamaForCausalLM, LlamaConfig(**SIZES), torch.float32)
    model.set_attn_implementation(PACKED_ATTENTION)
    with pytest.raises(ValueError, match="without packing or with a mask"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)
