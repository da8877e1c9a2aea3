"""Attention over packed sequences: all tokens of a batch end to end in one row, no padding, no dense mask.

transformers hands unknown keyword arguments of a model's forward down to its attention function: so the packing
travels. Because no *mask* function is registered under our name, transformers builds no mask at all.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from raylign.data.types import TokenBatch
from raylign.trainer.functional.attention import packed_causal_attention
from raylign.trainer.functional.packing import Packing, segments
from raylign.trainer.models.sequence_split import SequenceSplit
from torch import Tensor, nn
from transformers import AttentionInterface

PACKED_ATTENTION = "raylign_packed"
"""The name to load a model with: `attn_implementation=PACKED_ATTENTION`."""

_BEYOND = ("s_aux", "position_bias", "alibi", "indexer_mask")
"""Keyword arguments by which transformers' models ask for more than causal attention. Sinks are `s_aux` (GPT-OSS)."""


def packed_states(body: nn.Module, tokens: TokenBatch, packing: Packing, split: SequenceSplit | None = None) -> Tensor:
    """Run a transformers base model on the tokens that `packing` computes: their states `[M, H]`.

    Those of all N tokens are `states[packing.rows]`. With `split` only this rank's `[L, H]` of them; collective then.
    """
    computed, positions, more = packing.tokens, packing.positions, {}
    if split is not None:
        own = split.own(computed.numel(), computed.device)
        computed, positions, more = computed[own], positions[own], {"split": split}
    output = body(
        input_ids=tokens.input_ids[computed][None],
        position_ids=positions[None],
        packing=packing,
        use_cache=False,
        **more,
    )
    return cast(Tensor, output.last_hidden_state[0])


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence only, over the tokens of its own and those it shares.

    query `[1, H, M, D]`, key and value `[1, H_kv, M, D]` (grouped heads are shared, not copied) -> `[1, M, H, D]`;
    L of the M where ranks split them (models/sequence_split.py).
    Dropout is not applied: a policy's log-probs must be a function of its weights, or the PPO ratio of an unchanged
    policy is not 1. Raises ValueError when the packing did not travel (the model does not pass its keyword arguments
    on) or comes with a mask, and for attention that is more than softmax over the scores: sinks, position biases.
    """
    packing = kwargs.get("packing")
    if not isinstance(packing, Packing) or attention_mask is not None or query.shape[0] != 1:
        raise ValueError(
            f"{type(module).__name__} was called without packing or with a mask (the model does not pass its keyword "
            "arguments on to its attention, or makes a mask itself)"
        )
    if beyond := [name for name in _BEYOND if kwargs.get(name) is not None]:
        raise ValueError(
            f"{type(module).__name__} asks for {', '.join(beyond)}, which packed attention does not compute"
        )
    attend = partial(
        _attend,
        packing=packing,
        scale=kwargs.get("scaling"),
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
    )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [M, H, D]
    if (split := cast("SequenceSplit | None", kwargs.get("split"))) is not None:
        return split.attention(q, k, v, packing.tokens.numel(), attend)[None], None
    return attend(q, k, v)[None], None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    packing: Packing,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """[M, H, D] -> [M, H, E], by the kernel for where the tokens are."""
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and softcap is None:  # the kernel has no cap
        return _varlen(query, key, value, packing, scale, window)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return packed_causal_attention(query, key, value, packing, scale=scale, window=window, softcap=softcap)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None, window: int | None
) -> Tensor:
    """One fused kernel over all sequences. Written against torch 2.13's API; has not run on a GPU yet.

    A sequence brings the queries it computes and all of its keys; the kernel aligns the queries with the last keys (as
    FlashAttention does since 2.1; torch.nn.attention.bias relies on it too).
    """
    from torch.nn.attention.varlen import varlen_attn

    parts = segments(packing)
    if packing.shared:
        # In float32 and back: exact forward, and backward adds a shared token's gradients up without losing small ones.
        key, value = (x.float().index_select(0, parts.key_rows).to(x.dtype) for x in (key, value))
    output = varlen_attn(
        query,
        key,
        value,
        parts.query_bounds,
        parts.key_bounds,
        parts.most_queries,
        parts.most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, output)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
