"""A model is tried once when it is loaded: in training mode, packed, sharing a prompt and with the fused head it must
give the numbers of transformers' own eager forward, one sequence at a time.

The comparison is with eager attention because torch's fused one leaves out what eager honours (soft-caps, sinks).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from raylign.conf.errors import ModelLoadError
from raylign.data.types import TokenBatch
from raylign.trainer.functional.packing import pack
from raylign.trainer.models.architecture import head_problem, head_scales
from raylign.trainer.models.packed_attention import packed_states
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

_SAME = 1e-5
"""Relative gap of two runs of the same computation: what is above is noise that was drawn, not rounding."""
_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Relative gap of packed and eager states. Two right bfloat16 forwards of SmolLM2 differ by 0.03; a leak makes 1.1."""
_HEAD_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 0.01}
"""The same for logits of equal states: one matrix product and one rounding."""
_IDS = (11, 7, 5, 3, 17, 2, 13, 19, 23, 6)
ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What an architecture that is written for something else raises."""

_Result = TypeVar("_Result")


class _Refused(Exception):
    """Why the model cannot be trained, as the second half of a sentence that begins with its name."""


@torch.no_grad()
def check_model(hf: PreTrainedModel, path: Path | str, *, with_head: bool) -> float:
    """What the logits are times `weight @ state` (1 for nearly all); leaves the model in training mode.

    Refused is what makes log-probs or scores anything but a function of the weights and of the own sequence: noise in
    training mode, state that moves between sequences, layers that need more of the past than attention's keys,
    attention that is more than softmax over scores, heads that are more than a scaled matrix product.
    Raises ModelLoadError naming the architecture and the reason.
    """
    try:
        if hf.base_model is hf:
            raise _Refused("its body cannot be called apart from its head")
        if with_head and (problem := head_problem(hf)):
            raise _Refused(problem)
        _refuse_threshold_routers(hf)
        _check_states(hf)
        return _find_scale(hf) if with_head else 1.0
    except _Refused as reason:
        raise _refusal(hf, path, str(reason)) from None
    except ERRORS as error:
        raise _refusal(hf, path, _first_line(error)) from error
    finally:
        hf.train()


def _refusal(hf: PreTrainedModel, path: Path | str, reason: str) -> ModelLoadError:
    return ModelLoadError(f"{path}: {type(hf).__name__} is not supported by packed training: {reason}")


def _first_line(error: BaseException) -> str:
    message = (str(error).strip() or "no message").splitlines()[0]
    if type(error) is ValueError:
        return message
    return f"its forward pass does not run as packed training calls it ({type(error).__name__}: {message})"


def _refuse_threshold_routers(hf: PreTrainedModel) -> None:
    """Routers that read their noise setting in evaluation mode too: PhiMoE's, for which it is a threshold, and which
    draw experts at random in training. With the setting at 0 they are another model."""
    noisy = {module for module in hf.modules() if any(name.endswith("jitter_noise") for name in vars(module))}
    if not noisy:
        return
    read: set[str] = set()

    def recording(kind: type) -> type:
        def look_up(self: nn.Module, name: str) -> object:
            if name.endswith("jitter_noise"):
                read.add(name)
            return object.__getattribute__(self, name)

        return type(kind.__name__, (kind,), {"__getattribute__": look_up})

    kinds = {module: type(module) for module in noisy}
    made = {kind: recording(kind) for kind in set(kinds.values())}
    hf.eval()
    try:
        for module, kind in kinds.items():
            module.__class__ = made[kind]
        row = [i % hf.config.get_text_config().vocab_size for i in _IDS]
        _in_eager(hf, lambda: _own(hf, row))
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind
    if read:
        raise _Refused(f"its routers use {sorted(read)[0]} in every mode and draw experts at random in training")


def _check_states(hf: PreTrainedModel) -> None:
    """Five forwards packed and three of one sequence in eager attention, all of a few tokens."""
    limit = _LIMITS[hf.dtype]
    same = _SAME if hf.device.type == "cpu" else limit  # a card adds up in any order; noise was looked for on the CPU
    size = hf.config.get_text_config().vocab_size
    ids = [i % size for i in _IDS]
    donor, follower, other = ids[:4], [*ids[:3], *ids[4:]], ids[3:9]
    hf.train()
    first = _packed(hf, [other])
    _compare(_packed(hf, [other]), first, same, "two passes in training mode differ (noise is drawn in its layers)")
    hf.eval()
    _compare(_packed(hf, [other]), first, same, "training and evaluation mode differ")
    alone = _in_eager(hf, lambda: [_own(hf, row) for row in (follower, other)])
    _compare(first, alone[1], limit, "packed attention gives other states than eager attention")
    beside = _packed(hf, [other, ids + ids])[: len(other)]
    _compare(beside, alone[1], limit, "a longer sequence in the batch changes another one's states")
    _compare(_packed(hf, [other]), first, same, "a forward pass changes the next one (something is remembered)")
    _compare(_packed(hf, [donor, follower, other])[len(donor) :], torch.cat(alone), limit, "packed sequences differ")


def _find_scale(hf: PreTrainedModel) -> float:
    """Which of the scales that the configuration names turns `weight @ state` into the model's own logits."""
    row = [i % hf.config.get_text_config().vocab_size for i in _IDS]
    states, logits = _in_eager(hf, lambda: (_own(hf, row), hf(input_ids=_one(hf, row), use_cache=False).logits[0]))
    product = F.linear(states, hf.get_output_embeddings().weight).float()
    gaps = {scale: _gap(product * scale, logits.float()) for scale in head_scales(hf.config)}
    scale = min(gaps, key=gaps.__getitem__)
    if not gaps[scale] <= _HEAD_LIMITS[hf.dtype]:
        raise _Refused(f"its head is more than a matrix product (relative gap of the logits {gaps[scale]:.1e})")
    return scale


def _packed(hf: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """States `[N, H]` of all tokens, with what sequences begin with computed once."""
    tokens = TokenBatch.from_sequences(rows, [[False] * len(row) for row in rows])
    tokens = TokenBatch(*(t.to(hf.device) for t in (tokens.input_ids, tokens.cu_seqlens, tokens.response_mask)))
    packing = pack(tokens, min_saved=0.0)
    return packed_states(hf.base_model, tokens, packing)[packing.rows]


def _own(hf: PreTrainedModel, row: list[int]) -> Tensor:
    """States `[L, H]` of one sequence, by transformers' own forward."""
    return hf.base_model(input_ids=_one(hf, row), use_cache=False).last_hidden_state[0]


def _one(hf: PreTrainedModel, row: list[int]) -> Tensor:
    return torch.tensor([row], device=hf.device)


def _in_eager(hf: PreTrainedModel, run: Callable[[], _Result]) -> _Result:
    packed = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        return run()
    finally:
        hf.set_attn_implementation(packed)


def _gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def _compare(ours: Tensor, theirs: Tensor, limit: float, otherwise: str) -> None:
    gap = _gap(ours, theirs)
    if not gap <= limit:  # a NaN is no agreement
        raise _Refused(f"{otherwise} (relative gap {gap:.1e})")
