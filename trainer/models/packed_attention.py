"""Attention over packed sequences: all tokens of a batch end to end in one row, no padding, no dense mask.

transformers hands unknown keyword arguments of a model's forward down to its attention function. The packing travels
under the names its flash-attention code uses (`cu_seq_lens_q`, `max_length_q`), and because no *mask* function is
registered under our name, transformers builds no mask at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from data.types import TokenBatch
from trainer.functional.attention import packed_causal_attention

PACKED_ATTENTION = "raylign_packed"
"""The name to load a model with: `attn_implementation=PACKED_ATTENTION`."""


def packed_inputs(tokens: TokenBatch) -> Mapping[str, Any]:
    """Keyword arguments for a transformers base model: ids and restarting positions `[1, N]`, and the packing."""
    starts = tokens.cu_seqlens[:-1].to(torch.int64)
    lengths = tokens.lengths
    positions = torch.arange(tokens.num_tokens, device=tokens.input_ids.device)
    positions = positions - starts.repeat_interleave(lengths, output_size=tokens.num_tokens)
    return {
        "input_ids": tokens.input_ids[None],
        "position_ids": positions[None],
        "cu_seq_lens_q": tokens.cu_seqlens,
        "max_length_q": int(lengths.max()),
        "use_cache": False,
    }


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence only.

    query `[1, H, N, D]`, key and value `[1, H_kv, N, D]` (grouped heads are shared, not copied) -> `[1, N, H, D]`.
    Dropout is not applied: a policy's log-probs must be a function of its weights, or the PPO ratio of an unchanged
    policy is not 1. Raises ValueError when the packing did not travel (the model does not pass its keyword arguments
    on) or comes with a mask.
    """
    cu_seqlens = kwargs.get("cu_seq_lens_q")
    if cu_seqlens is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError(
            f"{type(module).__name__} was called without packing (cu_seq_lens_q) or with a mask; "
            f"{PACKED_ATTENTION} serves packed batches only"
        )
    scale, window = kwargs.get("scaling"), kwargs.get("sliding_window")
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        output = _varlen(query, key, value, cu_seqlens, int(kwargs["max_length_q"]), scale, window)
    else:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, H, D]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        output = packed_causal_attention(q, k, v, cu_seqlens.diff().tolist(), scale=scale, window=window)[None]
    return output, None


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """One fused kernel over all sequences. Written against torch 2.13's API; has not run on a GPU yet."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, H, D]
    grouped = q.shape[1] != k.shape[1]
    left = -1 if window is None else window - 1
    bounds = cu_seqlens.to(device=q.device, dtype=torch.int32)
    output = varlen_attn(
        q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(left, 0), enable_gqa=grouped
    )
    return cast(Tensor, output)[None]


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
