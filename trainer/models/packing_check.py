"""A model is tried once when it is loaded: packed, sharing a prompt and with the fused head it must say the same."""

from __future__ import annotations

from pathlib import Path

import torch
from raylign.conf.errors import ModelLoadError
from raylign.data.types import TokenBatch
from raylign.trainer.functional.packing import pack
from raylign.trainer.models.packed_attention import packed_states
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def check_packing(hf: PreTrainedModel, path: Path, *, with_head: bool) -> None:
    """Refuse an architecture that packing, sharing or the plain fused head would get silently wrong.

    Three short sequences go through packed, the first two computing what they begin with together; the second and third
    must give what transformers' own forward gives them alone: logits with the head of a causal model, else states. This
    catches state leaking between sequences, layers that need more of the past than attention's keys, keyword arguments
    that are not passed on, and heads that do more than a matrix product (biases, soft-capping, scaling).
    Raises ModelLoadError.
    """
    hf.eval()
    ids = [i % hf.config.get_text_config().vocab_size for i in (11, 7, 5, 3, 17, 2, 13)]
    rows = [ids[:4], [*ids[:3], *ids[5:]], ids[3:]]
    tokens = TokenBatch.from_sequences(rows, [[False] * len(row) for row in rows])
    tokens = TokenBatch(*(t.to(hf.device) for t in (tokens.input_ids, tokens.cu_seqlens, tokens.response_mask)))
    packing = pack(tokens, min_saved=0.0)
    ours = packed_states(hf.base_model, tokens, packing)[packing.rows[len(rows[0]) :]]
    if with_head:
        ours = nn.functional.linear(ours, hf.get_output_embeddings().weight)
    packed = hf.config._attn_implementation
    hf.set_attn_implementation("sdpa")
    alone = [torch.tensor([row], device=hf.device) for row in rows[1:]]
    if with_head:
        theirs = torch.cat([hf(input_ids=row, use_cache=False).logits[0] for row in alone]).float()
    else:
        theirs = torch.cat(
            [hf.base_model(input_ids=row, use_cache=False).last_hidden_state[0] for row in alone]
        ).float()
    hf.set_attn_implementation(packed)
    gap = float((ours.float() - theirs).norm() / theirs.norm())
    # Two right bfloat16 forwards of SmolLM2 differ by 0.03 here; a leak between sequences makes 1.1.
    limit = 1e-4 if hf.dtype is torch.float32 else 0.1
    if not gap <= limit:
        raise ModelLoadError(
            f"{path}: {type(hf).__name__} does not give the same numbers packed and alone (relative gap {gap:.1e}); "
            "its attention or head is not supported by packed training"
        )
