"""Architectures that are tried, each as a tiny configuration without a download; `python` this file writes the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BASE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_SCALED = {"rope_theta": 10000.0, "factor": 2.0}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Tried:
    """One configuration and what it must come to."""

    name: str
    kind: str  # transformers' model_type
    fields: dict[str, Any] = field(default_factory=dict)
    refused: str = ""  # in the refusal; empty: accepted

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of its configuration."""
        return {**_BASE, **self.fields}


def _t(name: str, kind: str, refused: str = "", **fields: Any) -> Tried:
    return Tried(name, kind, fields, refused)


_LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 24, "first_k_dense_replace": 1,
}  # fmt: skip
_GPT_NEO = {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
NO_KEYWORDS = "without packing or with a mask"
MATRIX = (
    _t("Llama 2", "llama", num_key_value_heads=4),
    _t("Llama 3, tied", "llama", tie_word_embeddings=True),
    _t("Llama 3.1 with its rotary scaling", "llama", rope_parameters=_LLAMA3),
    _t("Llama, linear rotary scaling", "llama", rope_parameters={**_SCALED, "rope_type": "linear"}),
    _t("Llama, dynamic rotary scaling", "llama", rope_parameters={**_SCALED, "rope_type": "dynamic"}),
    _t("Llama with biases and dropout", "llama", attention_bias=True, mlp_bias=True, attention_dropout=0.1),
    _t("Llama 4, text", "llama4_text", "called apart from its head", head_dim=8, intermediate_size_mlp=48, **_EXPERTS),
    _t("Qwen 2", "qwen2"),
    _t("Qwen 2.5, tied", "qwen2", tie_word_embeddings=True),
    _t("Qwen 2 with a window", "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1),
    _t("Qwen 3", "qwen3", head_dim=8),
    _t("Qwen 3 MoE", "qwen3_moe", head_dim=8, **_EXPERTS),
    _t("Qwen 2 MoE", "qwen2_moe", shared_expert_intermediate_size=32, **_EXPERTS),
    _t("Gemma", "gemma", head_dim=8),
    _t("Gemma 2", "gemma2", "final_logit_softcapping", head_dim=8, query_pre_attn_scalar=8, sliding_window=4),
    _t(
        "Gemma 2 without the cap on its logits", "gemma2", head_dim=8, query_pre_attn_scalar=8, sliding_window=4,
        attn_logit_softcapping=1.0, final_logit_softcapping=None,
    ),
    _t("Gemma 3, text", "gemma3_text", head_dim=8, query_pre_attn_scalar=8, sliding_window=4),
    _t("Mistral", "mistral", sliding_window=None),
    _t("Mistral with a window", "mistral", sliding_window=4),
    _t("Mixtral", "mixtral", num_local_experts=4),
    _t("Mixtral with router jitter", "mixtral", num_local_experts=4, router_jitter_noise=0.01),
    _t("Phi", "phi", "head has a bias"),
    _t("Phi 3", "phi3"),
    _t("Phi 3 with longrope", "phi3", rope_parameters=_LONG),
    _t("Phi 3.5 MoE", "phimoe", "head has a bias", num_local_experts=4, lm_head_bias=True),
    _t("GPT-NeoX", "gpt_neox"),
    _t("OLMo", "olmo"),
    _t("OLMo 2", "olmo2"),
    _t("OLMo 3", "olmo3", sliding_window=4),
    _t("OLMoE", "olmoe", **_EXPERTS),
    _t("Granite", "granite", logits_scaling=4.0, embedding_multiplier=2.0, residual_multiplier=0.5),
    _t("Granite MoE", "granitemoe", logits_scaling=4.0, num_local_experts=4),
    _t("Cohere", "cohere", logit_scale=0.25),
    _t("Cohere 2", "cohere2", logit_scale=0.25, sliding_window=4),
    _t("Seed-OSS", "seed_oss", head_dim=8),
    _t("SmolLM 3", "smollm3"),
    _t("OPT", "opt", ffn_dim=48, word_embed_proj_dim=32, init_std=0.2),
    _t("StableLM", "stablelm", NO_KEYWORDS),
    _t("Nemotron", "nemotron", NO_KEYWORDS),
    _t("GPT-OSS", "gpt_oss", "s_aux", head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    _t("Phi 3.5 MoE without the head's bias", "phimoe", "in every mode and draw experts", num_local_experts=4),
    _t("DeepSeek V3", "deepseek_v3", **_LATENT),
    _t("DeepSeek V2", "deepseek_v2", **_LATENT),
    _t("GLM 4", "glm4", head_dim=8),
    _t("GLM", "glm", head_dim=8),
    _t("StarCoder 2", "starcoder2", sliding_window=4),
    _t("Helium", "helium", head_dim=8),
    _t("GPT-2", "gpt2", **_GPT2),
    _t("GPT-J", "gptj", "do not take another attention function", **_GPT2, rotary_dim=8),
    _t("GPT-Neo", "gpt_neo", "do not take another attention function", **_GPT_NEO),
    _t("Falcon", "falcon", "do not take another attention function"),
    _t("LFM 2", "lfm2", "gap", layer_types=["conv", "full_attention"]),
    _t("Mamba", "mamba", "gap"),
)  # fmt: skip

SERVED = (
    "Llama 2", "Llama 3, tied", "Llama 3.1 with its rotary scaling", "Qwen 2", "Qwen 3", "Gemma", "Gemma 3, text",
    "Mistral with a window", "OLMo 2", "OLMo 3", "Granite", "Seed-OSS", "SmolLM 3", "StarCoder 2", "OPT", "Phi 3",
    "GLM 4", "GLM",
)  # fmt: skip
"""Of these the engine's log-probs are the learner's after a publication: tests/system/test_served_matrix.py."""

PAGE = Path(__file__).parents[4] / "docs" / "models.md"


def page() -> str:
    """docs/models.md."""
    rows = [f"| {t.name} | `{t.kind}` | {_outcome(t)} | {'served' if t.name in SERVED else ''} |" for t in MATRIX]
    return "\n".join([_HEAD, *rows]) + "\n"


def _outcome(tried: Tried) -> str:
    return f"refused: {tried.refused.replace('|', '/')}" if tried.refused else "trained"


_HEAD = """# Models

Every model is tried when a role loads it, and by `raylign plan` on a small copy of its architecture: in training mode
twice, packed, beside a longer sequence, sharing a prompt, and against transformers' own eager forward. What does not
give the same numbers is refused by name. *Trained* below means: packed equals alone, training mode equals evaluation,
and a saved model read again by transformers is the same. A refusal is shown by the words that give its reason.

*Served* means: a vLLM engine that was sent changed weights reads them all back as sent and gives the tokens that it
samples the log-probs of transformers' eager forward, in float32 on CPU, to 2e-3 nats. An empty cell was not tried; the
canary of every publication refuses an engine that differs.

Mixture-of-experts models train offline; online runs refuse them, because experts are not sent in the form the engine
loads, and GPT-2 and GPT-NeoX, whose fused projection an engine stores in another order. Other fused projections (Phi
3, GLM 4) are read back whole, by engines of one rank; with `rollout.tensor_parallel_size` above 1 they are refused.
Models
whose rotary scaling looks at the longest position of a batch (dynamic, longrope) are refused when a sequence of the
rows, with the longest answer that may be sampled, is longer than the original length, and models with learned
positions when it is longer than those. As a reward model or critic an architecture needs a sequence classifier in
transformers, which Granite and LFM 2, say, do not have.

Written from tests/unit/trainer/models/model_matrix.py (run it to write the page again).

| model | `model_type` | in training | by vLLM on CPU |
|---|---|---|---|"""

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
