"""What a policy must hold, reward models and critics hold too, in both precisions: the handed cases by role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from raylign.conf.errors import ModelLoadError
from raylign.conf.schema import Precision
from raylign.data.types import TokenBatch
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from raylign.trainer.models.scalar_head import ScalarModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GEMMA2 = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}
RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "functional dropout": ("seed_oss", {"head_dim": 8, "residual_dropout": 0.1, "attention_dropout": 0.1}),
    "dropout of all layers": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2, "dropout": 0.1}),
    "router jitter": ("mixtral", {"num_local_experts": 4, "router_jitter_noise": 0.01}),
    "attention caps": ("gemma2", {**GEMMA2, "attn_logit_softcapping": 1.0, "final_logit_softcapping": None}),
    "a scaled head": ("granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5}),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "sinks": ("gpt_oss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}, "s_aux"),
    "threshold routers": ("phimoe", {"num_local_experts": 4}, "draw experts at random"),
    "no keywords": ("stablelm", {}, "without packing or with a mask"),
    "no other attention": ("falcon", {}, "attention function"),
    "no classifier": ("mamba", {}, "transformers has no sequence classifier"),
    "no classifier, attention": ("granite", {}, "transformers has no sequence classifier"),
}
LIMIT = {Precision.float32: 1e-4, Precision.bfloat16: 0.06}
"""Relative gap of states to float32's eager ones. An attention cap that is left out makes over 0.3 here."""
ROWS = [torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (30, 9)]


def make(folder: Path, kind: str, fields: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **{**SHAPE, **fields}), attn_implementation="eager"
    ).eval()
    made.save_pretrained(folder)
    return made


def batch() -> TokenBatch:
    return TokenBatch.from_sequences(ROWS, [[False] + [True] * (len(row) - 1) for row in ROWS])


@torch.no_grad()
def eager(model: PreTrainedModel) -> list[Tensor]:
    return [model.base_model(torch.tensor([row]), use_cache=False).last_hidden_state[0] for row in ROWS]


def numbers(model: CausalLM | ScalarModel) -> Tensor:
    """What the role's numbers are made of, in training mode as an update runs it."""
    with torch.no_grad():
        if isinstance(model, ScalarModel):
            return model(batch())
        return model(batch(), temperature=1.0).logprobs[batch().response_mask]


def expected(theirs: PreTrainedModel, model: CausalLM | ScalarModel) -> Tensor:
    states = eager(theirs)
    if isinstance(model, ScalarModel):
        return torch.cat(states) @ model.hf.score.weight[0].float().detach()
    with torch.no_grad():
        logits = [theirs(torch.tensor([row]), use_cache=False).logits[0].float() for row in ROWS]
    own = [
        each.log_softmax(-1)[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]
        for each, row in zip(logits, ROWS, strict=True)
    ]
    return torch.cat(own)


@pytest.mark.slow
@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize(
    ("case", "role"),
    [(c, r) for c in RIGHT for r in ("policy", "scalar") if (c, r) != ("a scaled head", "scalar")],  # refused below
)
def test_training_mode_is_transformers_eager_forward(case: str, role: str, precision: Precision, tmp_path: Path):
    theirs = make(tmp_path, *RIGHT[case])
    if role == "policy":
        ours: CausalLM | ScalarModel = load_causal_lm(tmp_path, precision=precision)
    else:
        ours = load_scalar_model(tmp_path, precision=precision, new_head_seed=1)
    ours.train()
    got, wanted = numbers(ours), expected(theirs, ours)
    assert torch.equal(got, numbers(ours)), "noise is drawn"
    assert float((got - wanted).norm() / wanted.norm()) < LIMIT[precision]


@pytest.mark.parametrize("case", REFUSED)
def test_reward_models_and_critics_of_such_architectures_are_refused_by_name(case: str, tmp_path: Path):
    kind, fields, words = REFUSED[case]
    made = make(tmp_path, kind, fields)
    with pytest.raises(ModelLoadError) as refusal:
        load_scalar_model(tmp_path, precision=Precision.bfloat16, new_head_seed=1)
    told = str(refusal.value)
    assert words in told and type(made).__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel") in told, told


@pytest.mark.parametrize("precision", Precision)
def test_capped_logits_refuse_a_policy_and_concern_no_scalar_head(precision: Precision, tmp_path: Path):
    theirs = make(tmp_path, "gemma2", GEMMA2)
    with pytest.raises(ModelLoadError, match="final_logit_softcapping=30"):
        load_causal_lm(tmp_path, precision=precision)
    ours = load_scalar_model(tmp_path, precision=precision, new_head_seed=1)
    got, wanted = numbers(ours), expected(theirs, ours)
    assert float((got - wanted).norm() / wanted.norm()) < LIMIT[precision]
