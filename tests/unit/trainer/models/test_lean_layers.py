"""Lean layers are transformers' own layers that keep less; what is written differently is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from raylign.trainer.models.lean_layers import lean_layers
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PreTrainedModel, Qwen3Config
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearRMSNormGated
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "head_dim": 8,
}  # fmt: skip
IDS = torch.arange(12).view(2, 6) % 64


def model(config: LlamaConfig | Qwen3Config | GemmaConfig, dtype: torch.dtype) -> PreTrainedModel:
    """With norms that are not all one."""
    torch.manual_seed(0)
    hf: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(dtype)
    for name, parameter in hf.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return hf


def played(hf: PreTrainedModel) -> tuple[Tensor, list[Tensor]]:
    """Logits, and every weight's gradient."""
    logits = hf(input_ids=IDS, use_cache=False).logits
    logits.float().square().sum().backward()
    return logits, [p.grad for p in hf.parameters() if p.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("config", "layers"), [(LlamaConfig(**SHAPE), 7), (Qwen3Config(**SHAPE), 11)])
def test_forward_is_the_same_bit_by_bit_and_backward_to_rounding(
    config: LlamaConfig | Qwen3Config, layers: int, dtype: torch.dtype
) -> None:
    plain = model(config, dtype)
    lean = copy.deepcopy(plain)
    assert lean_layers(lean, gated=True) == layers  # of two layers: two or four norms, one feed-forward; one last norm
    (mine, my_gradients), (theirs, their_gradients) = played(lean), played(plain)
    assert torch.equal(mine, theirs)
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    for one, other in zip(my_gradients, their_gradients, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("gated", [True, False])
def test_the_product_is_kept_or_made_again(gated: bool) -> None:
    lean, kept = model(LlamaConfig(**SHAPE), torch.float32), []
    lean_layers(lean, gated=gated)
    for layer in lean.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, given: kept.append(StorageWeakRef(given[0].untyped_storage()))
        )
    logits = lean(input_ids=IDS, use_cache=False).logits
    assert [ref.expired() for ref in kept] == [gated] * 2
    logits.sum().backward()


def test_a_layer_that_computes_otherwise_is_left_alone() -> None:
    gemma = model(GemmaConfig(**SHAPE), torch.float32)  # its norms scale by 1 + weight
    norms = [type(module).__name__ for module in gemma.modules() if "RMSNorm" in type(module).__name__]
    assert lean_layers(gemma, gated=False) == 0 < len(norms)

    llama = model(LlamaConfig(**SHAPE), torch.float32)
    mlp = llama.model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) + mlp.up_proj(x))
    before = mlp.forward
    assert lean_layers(llama, gated=True) == 6
    assert mlp.forward is before


@pytest.mark.parametrize(
    "gated",
    [Qwen3NextRMSNormGated(32), KimiLinearRMSNormGated(32, activation="silu")],
    ids=["must have a gate", "may have one"],
)
def test_a_norm_that_takes_a_gate_besides_is_left_alone(gated: nn.Module) -> None:
    llama = model(LlamaConfig(**SHAPE), torch.float32)
    llama.model.layers[0].input_layernorm = gated
    assert lean_layers(llama, gated=True) == 6, "of seven"
