"""Models of random weights for the checks: the widths of real ones, no hub, no tokenizer."""

from __future__ import annotations

from typing import TypedDict

import torch
from raylign.trainer.models.packed_attention import PACKED_ATTENTION
from transformers import LlamaConfig, LlamaForCausalLM


class Widths(TypedDict):
    """The sizes of a layer."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int


SEVEN_B_LAYER: Widths = {"hidden": 4096, "intermediate": 14336, "heads": 32, "kv_heads": 8}
HALF_B: Widths = {"hidden": 896, "intermediate": 4864, "heads": 14, "kv_heads": 2}


def random_llama(
    *, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, seed: int = 0
) -> LlamaForCausalLM:
    """A Llama of these sizes in float32 on the CPU, with packed attention."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )
    config._attn_implementation = PACKED_ATTENTION
    return LlamaForCausalLM(config).eval()
