"""Architectures of the served matrix, as tiny configurations with heads of a size that vLLM's CPU build has."""

from __future__ import annotations

from typing import Any

_BASE: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256, "initializer_range": 0.1,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def _shape(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return kind, {**_BASE, **fields}


SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2": _shape("llama", num_key_value_heads=4),
    "Llama 3, tied": _shape("llama", tie_word_embeddings=True),
    "Llama 3.1 with its rotary scaling": _shape("llama", rope_parameters=_LLAMA3),
    "Qwen 2": _shape("qwen2"),
    "Qwen 3": _shape("qwen3"),
    "Gemma": _shape("gemma"),
    "Gemma 3, text": _shape("gemma3_text", query_pre_attn_scalar=32, sliding_window=8),
    "Mistral with a window": _shape("mistral", sliding_window=8),
    "OLMo 2": _shape("olmo2"),
    "OLMo 3": _shape("olmo3", sliding_window=8),
    "Granite": _shape("granite", logits_scaling=4.0, embedding_multiplier=2.0, residual_multiplier=0.5),
    "Seed-OSS": _shape("seed_oss"),
    "SmolLM 3": _shape("smollm3"),
    "StarCoder 2": _shape("starcoder2", sliding_window=8),
    "OPT": _shape("opt", ffn_dim=192, word_embed_proj_dim=128, init_std=0.1),
    "Phi 3": _shape("phi3"),
    "GLM 4": _shape("glm4"),
    "GLM": _shape("glm"),
}
