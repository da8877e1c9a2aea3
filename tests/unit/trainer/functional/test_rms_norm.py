"""The lean norm against the definition in float64 and transformers' own layer."""

from __future__ import annotations

import pytest
import torch
from raylign.trainer.functional.rms_norm import rms_norm
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

EPS = 1e-5


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and upstream gradient; rows of very different size."""
    generator = torch.Generator().manual_seed(0)
    x, weight, upstream = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, shape[-1:], shape))
    x = x * torch.logspace(-4, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), upstream.to(dtype)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4, 8), (1, 1)])
def test_values_and_gradients_are_the_definition(shape: tuple[int, ...]) -> None:
    x, weight, upstream = drawn(*shape)
    found = rms_norm(x, weight, EPS)
    expected = weight * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-13)
    mine = torch.autograd.grad(found, (x, weight), upstream)
    theirs = torch.autograd.grad(expected, (x, weight), upstream)
    torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_transformers_layer_and_no_further_from_the_truth(dtype: torch.dtype) -> None:
    x, weight, upstream = drawn(64, 96, dtype=dtype)
    layer = LlamaRMSNorm(96, eps=EPS).to(dtype)
    layer.weight.data.copy_(weight)
    found, expected = rms_norm(x, weight, EPS), layer(x)
    assert torch.equal(found, expected)
    mine = torch.autograd.grad(found, (x, weight), upstream)
    theirs = torch.autograd.grad(expected, (x, layer.weight), upstream)
    wide, wide_weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    truth = torch.autograd.grad(rms_norm(wide, wide_weight, EPS), (wide, wide_weight), upstream.double())
    for one, other, exact in zip(mine, theirs, truth, strict=True):
        assert (one.double() - exact).norm() <= 1.05 * (other.double() - exact).norm()


def test_a_frozen_weight_or_input_gets_no_gradient() -> None:
    x, weight, _ = drawn(3, 4)
    rms_norm(x.detach(), weight, EPS).sum().backward()
    assert x.grad is None and weight.grad is not None
    rms_norm(x, weight.detach(), EPS).sum().backward()
    assert x.grad is not None
