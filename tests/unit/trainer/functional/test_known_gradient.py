"""The head with a known gradient against the definition: values, gradients, memory, and a loss that lied."""

from __future__ import annotations

import pytest
import torch
from raylign.trainer.functional.known_gradient import logprobs_of_frozen_head, logprobs_of_known_gradient
from raylign.trainer.functional.logprobs import fused_linear_logprobs, linear_logprobs
from torch import Tensor

from tests.unit.trainer.functional.test_logprobs import LargestTensor, head_inputs


def _upstream(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of both signs and some zeros."""
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.where(torch.arange(count) % 4 == 3, 0, drawn).to(dtype)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("tokens_at_once", [1, 4, 13, 50])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_equals_the_definition_with_gradients(temperature: float, tokens_at_once: int, scale: float) -> None:
    hidden, weight, targets = head_inputs(13)
    targets[3] = (hidden[3] @ weight.T).argmax()
    upstream = _upstream(13)
    found = logprobs_of_known_gradient(
        hidden, weight, targets, upstream, temperature=temperature, block_bytes=tokens_at_once * 11 * 8
    )
    plain = linear_logprobs(hidden, weight, targets, temperature=temperature)
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad(scale * (upstream * out[0]).sum(), (hidden, weight)) for out in (found, plain)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forms_the_bits_that_a_loss_of_unknown_gradient_gets(dtype: torch.dtype) -> None:
    hidden, weight, targets = head_inputs(40, v=64, h=16, dtype=dtype)
    upstream, size = _upstream(40, torch.float32), 40 * 64 * dtype.itemsize  # one block: both add up in one order
    known = logprobs_of_known_gradient(hidden, weight, targets, upstream, temperature=0.7, block_bytes=size)
    unknown = fused_linear_logprobs(hidden, weight, targets, temperature=0.7, block_bytes=size)
    frozen = logprobs_of_frozen_head(hidden, weight, targets, temperature=0.7, block_bytes=size)
    for a, b, c in zip(known, unknown, frozen, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
    grads = [torch.autograd.grad((upstream * out[0]).sum(), (hidden, weight)) for out in (known, unknown)]
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_costs_no_gradient_and_changes_no_other(frozen: int) -> None:
    hidden, weight, targets = head_inputs(13)
    upstream, free = _upstream(13), (weight, hidden)[frozen]
    given = [x.detach() if i == frozen else x for i, x in enumerate((hidden, weight))]
    logprobs, _, _ = logprobs_of_known_gradient(*given, targets, upstream, temperature=1.0)
    assert sum(x is not None for x in logprobs.grad_fn.saved_tensors) == 2, "the given gradient, and the free one's"
    want, _, _ = linear_logprobs(hidden, weight, targets, temperature=1.0)
    [found] = torch.autograd.grad((upstream * logprobs).sum(), free)
    torch.testing.assert_close(found, torch.autograd.grad((upstream * want).sum(), free)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("tokens_at_once", [1, 4, 50])
def test_a_frozen_head_serves_any_loss(temperature: float, tokens_at_once: int) -> None:
    hidden, weight, targets = head_inputs(13)
    found = logprobs_of_frozen_head(
        hidden, weight, targets, temperature=temperature, block_bytes=tokens_at_once * 11 * 8
    )
    plain = linear_logprobs(hidden, weight, targets, temperature=temperature)
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad((out[0].exp() * _upstream(13)).sum(), hidden)[0] for out in (found, plain)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_a_frozen_head_loses_no_more_than_rounding_in_bfloat16() -> None:
    hidden, weight, targets = head_inputs(40, v=64, h=16, dtype=torch.bfloat16)
    upstream = _upstream(40, torch.float32) * torch.logspace(-6, 3, 40)  # a token's factor may be of any size
    exact = hidden.detach().float().requires_grad_()
    (logprobs_of_frozen_head(hidden, weight, targets, temperature=0.7)[0] * upstream).sum().backward()
    (linear_logprobs(exact, weight.float(), targets, temperature=0.7)[0] * upstream).sum().backward()
    counted = upstream != 0
    off = (hidden.grad.float() - exact.grad).norm(dim=1)[counted] / exact.grad.norm(dim=1)[counted]
    assert off.max() < 0.03 and off.mean() < 0.01, off


def test_a_loss_that_is_not_what_was_given_is_refused() -> None:
    hidden, weight, targets = head_inputs(13)
    logprobs, _, _ = logprobs_of_known_gradient(hidden, weight, targets, _upstream(13), temperature=1.0)
    with pytest.raises(RuntimeError, match="no multiple of the one that was given"):
        (logprobs.exp() * _upstream(13)).sum().backward()
    logprobs, _, _ = logprobs_of_known_gradient(hidden, weight, targets, torch.zeros_like(logprobs), temperature=1.0)
    with pytest.raises(RuntimeError, match="no multiple of the one that was given"):
        logprobs.sum().backward()


def test_bfloat16_gradients_are_as_near_the_truth_as_rounding_allows() -> None:
    hidden, weight, targets = head_inputs(40, v=64, h=16, dtype=torch.bfloat16)
    upstream = _upstream(40, torch.float32)
    logprobs, entropy, _ = logprobs_of_known_gradient(
        hidden, weight, targets, upstream, temperature=0.7, block_bytes=7 * 64 * 2
    )
    assert logprobs.dtype is entropy.dtype is torch.float32
    exact = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    want, want_entropy, _ = linear_logprobs(*exact, targets, temperature=0.7)
    torch.testing.assert_close(logprobs, want, atol=0.06, rtol=0)  # a bfloat16 logit of size 8 is rounded by 0.016
    torch.testing.assert_close(entropy, want_entropy, atol=0.06, rtol=0)
    (logprobs * upstream).sum().backward()
    (want * upstream).sum().backward()
    for mine, truth in zip((hidden, weight), exact, strict=True):
        assert mine.grad.dtype is torch.bfloat16
        assert (mine.grad.float() - truth.grad).norm() < 0.01 * truth.grad.norm()


def test_large_logits_stay_finite() -> None:
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    ones = torch.ones(2)
    logprobs, entropy, _ = logprobs_of_known_gradient(hidden, weight, torch.tensor([0, 0]), ones, temperature=1.0)
    torch.testing.assert_close(logprobs, torch.tensor([0.0, -2000.0]))
    torch.testing.assert_close(entropy, torch.zeros(2))
    logprobs.sum().backward()
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


def test_no_tokens_give_zero_gradients() -> None:
    hidden, weight, targets = head_inputs(0)
    logprobs, entropy, _ = logprobs_of_known_gradient(hidden, weight, targets, torch.ones(0), temperature=1.0)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert weight.grad.abs().sum() == 0


def test_logits_exist_for_some_tokens_at_a_time() -> None:
    hidden, weight, targets = head_inputs(200, 300, 4)
    with LargestTensor() as largest:
        logprobs, _, _ = logprobs_of_known_gradient(
            hidden, weight, targets, torch.ones(200), temperature=0.9, block_bytes=10 * 300 * 8
        )
        logprobs.sum().backward()
    assert largest.numel == 10 * 300
