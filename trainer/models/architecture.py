"""What a model's configuration says about its forward pass: noise, the head's scale, lengths, experts, a small copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

_NOISE = ("dropout", "pdrop", "dropout_prob", "layerdrop", "jitter_noise")
_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier", "logits_mup_width_multiplier")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_WIDTHS = {
    "intermediate_size": 64,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "n_inner": 64,
    "intermediate_size_mlp": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
}
_SMALL_VOCABULARY = 128
SMALL_WINDOW = 4
"""Sliding window of the small copy: shorter than the sequences it is tried on."""


def noise_of(config: PretrainedConfig) -> dict[tuple[str, str], float]:
    """What `without_noise` would set to 0: by the class of the part and the field's name."""
    return {
        (type(part).__name__, name): value
        for part in _parts(config)
        for name, value in vars(part).items()
        if name.endswith(_NOISE) and isinstance(value, float | int) and value
    }


def set_noise(config: PretrainedConfig, values: Mapping[tuple[str, str], float]) -> None:
    """Put fields that `noise_of` found to these values, in place."""
    for part in _parts(config):
        for (kind, name), value in values.items():
            if type(part).__name__ == kind:
                setattr(part, name, value)


def without_noise(config: PretrainedConfig) -> PretrainedConfig:
    """Set every field for dropout, dropped layers and router jitter to 0, in place and in its parts as well.

    A layer may read them with `self.training` and no `nn.Dropout` module to find.
    """
    set_noise(config, dict.fromkeys(noise_of(config), 0.0))
    return config


def head_scales(config: PretrainedConfig) -> list[float]:
    """What the logits of a causal model may be times `weight @ state`: 1, and what the configuration names.

    One library divides by a field that another multiplies by, so both are listed; the load check tells which.
    """
    named = [float(getattr(config.get_text_config(), name, None) or 1.0) for name in _SCALES]
    return list(dict.fromkeys([1.0, *(x for value in named for x in (1 / value, value))]))


def head_problem(hf: PreTrainedModel) -> str | None:
    """Why the fused head cannot replace this model's, or None. The reason names the field."""
    cap = getattr(hf.config.get_text_config(), "final_logit_softcapping", None)
    if cap is not None:
        return f"its head soft-caps the logits (final_logit_softcapping={cap:g}), which the fused head does not"
    head = hf.get_output_embeddings()
    if head is None:
        return "it has no output head"
    if getattr(head, "bias", None) is not None:
        return "its head has a bias, which the fused head does not"
    return None


def length_limit(config: PretrainedConfig) -> tuple[int, str] | None:
    """Tokens up to which a sequence's numbers depend on itself alone, and what decides it; None without such a limit.

    Dynamic and long rotary scalings look at the longest position of the whole batch; chunked attention cuts the past.
    """
    text = config.get_text_config()
    found: list[tuple[int, str]] = []
    parameters = getattr(text, "rope_parameters", None) or {}
    for rope in [parameters, *(each for each in parameters.values() if isinstance(each, dict))]:
        kind = rope.get("rope_type", "")
        if "dynamic" in kind or kind == "longrope":
            original = rope.get("original_max_position_embeddings") or text.max_position_embeddings
            found.append((int(original), f"rotary scaling of type {kind} beyond the original length"))
    if chunk := getattr(text, "attention_chunk_size", None):
        found.append((int(chunk), f"attention in chunks (attention_chunk_size={chunk})"))
    return min(found) if found else None


def position_limit(hf: PreTrainedModel) -> int | None:
    """Tokens for which the model has learned positions; None where positions are computed."""
    learned = ("wpe", "embed_positions", "position_embeddings")
    found = [m for n, m in hf.named_modules() if n.endswith(learned) and isinstance(m, nn.Embedding)]
    return int(hf.config.get_text_config().max_position_embeddings) if found else None


def has_experts(hf: PreTrainedModel) -> bool:
    """Whether any layer holds its experts in one tensor, `[experts, out, in]`."""
    return any("expert" in name and p.ndim == 3 for name, p in hf.named_parameters())


def fused_projections(hf: PreTrainedModel, *, split: bool) -> list[str]:
    """Projections that the folder itself stores fused and whose read-back from a rollout engine cannot be compared
    (rollout/vllm_extension.py): GPT-2's and GPT-NeoX's, which an engine stores in another order, and with `split`, an
    engine of several ranks, all, as each rank has rows of every part.
    """
    leaves = {n.removesuffix(".weight").rpartition(".")[2] for n, p in hf.named_parameters() if p.ndim == 2}
    return sorted(leaves & {"c_attn", "query_key_value", *(("qkv_proj", "gate_up_proj") if split else ())})


def small_copy(config: PretrainedConfig) -> PretrainedConfig:
    """The same architecture with the same switches and every kind of layer, small enough to try in a moment.

    Heads keep their size, groups theirs; windows become SMALL_WINDOW, so that they matter on a short sequence.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    _fewer_layers(text)
    heads = int(getattr(text, "num_attention_heads", None) or 1)
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    per_head = -(-int(text.hidden_size) // heads)
    few = min(groups, 2)
    new: dict[str, Any] = {
        "num_attention_heads": heads // groups * few,
        "num_key_value_heads": few,
        "hidden_size": heads // groups * few * per_head,
        "vocab_size": _SMALL_VOCABULARY,
        "sliding_window": SMALL_WINDOW,
        "initializer_range": 0.2,  # at 0.02 a new layer adds next to nothing to the state, and an error hides
        "init_std": 0.2,
    }
    new |= {name: min(int(getattr(text, name, None) or 0), width) for name, width in _WIDTHS.items()}
    new |= {name: _few_experts(text, int(getattr(text, name, None) or 0)) for name in _EXPERTS}
    for name, value in new.items():
        if getattr(text, name, None):
            setattr(text, name, value)
    text.pad_token_id, text.bos_token_id, text.eos_token_id = 0, 1, 2
    return small


def _few_experts(text: PretrainedConfig, experts: int) -> int:
    chosen = int(getattr(text, "num_experts_per_tok", None) or 1)
    groups = int(getattr(text, "n_group", None) or 1)
    return min(experts, groups * max(4, 2 * chosen))


def _fewer_layers(text: PretrainedConfig) -> None:
    """The first layer of every kind, and two layers at least; per-layer lists are cut alike."""
    layers = int(text.num_hidden_layers)
    kinds = list(getattr(text, "layer_types", None) or [])
    keep = sorted({0, min(1, layers - 1), layers - 1, *(kinds.index(kind) for kind in kinds)})
    lists = {n: v for n, v in vars(text).items() if isinstance(v, list) and len(v) == layers}
    text.num_hidden_layers = len(keep)
    for name, values in lists.items():
        setattr(text, name, [values[at] for at in keep])


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)
