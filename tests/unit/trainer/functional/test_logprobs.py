"""The fused head against the definition: values, gradients, memory."""

from __future__ import annotations

import pytest
import torch
from raylign.trainer.functional.logprobs import fused_linear_logprobs, linear_logprobs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def head_inputs(m: int, v: int = 11, h: int = 5, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Hidden states, weight and targets."""
    gen = torch.Generator().manual_seed(m)
    hidden = torch.randn(m, h, generator=gen, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(v, h, generator=gen, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, v, (m,), generator=gen)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("logits_at_once", [1, 13, 40, 143, 1000])
def test_equals_the_definition_with_gradients(temperature: float, logits_at_once: int) -> None:
    hidden, weight, targets = head_inputs(13)
    targets[3] = (hidden[3] @ weight.T).argmax()
    upstream = torch.randn(2, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fused = fused_linear_logprobs(hidden, weight, targets, temperature=temperature, block_bytes=logits_at_once * 8)
    plain = linear_logprobs(hidden, weight, targets, temperature=temperature)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert plain[2].any() and not plain[2].all()
    # through log-probs alone, entropy alone, and both
    for use in ([0], [1], [0, 1]):
        grads = [
            torch.autograd.grad(sum((upstream[i] * out[i]).sum() for i in use), (hidden, weight), retain_graph=True)
            for out in (fused, plain)
        ]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, targets = head_inputs(6)
    assert torch.autograd.gradcheck(
        lambda h, w: fused_linear_logprobs(h, w, targets, temperature=0.8, block_bytes=3 * 11 * 8)[:2],
        (hidden, weight),
    )


def test_frozen_weight_and_frozen_hidden_get_no_gradient() -> None:
    hidden, weight, targets = head_inputs(6)
    for frozen, free in ((hidden, weight), (weight, hidden)):
        out, _, _ = fused_linear_logprobs(
            *(x.detach() if x is frozen else x for x in (hidden, weight)), targets, temperature=1.0
        )
        (grad,) = torch.autograd.grad(out.sum(), free)
        want, _, _ = linear_logprobs(hidden, weight, targets, temperature=1.0)
        torch.testing.assert_close(grad, torch.autograd.grad(want.sum(), free)[0])


def test_large_logits_stay_finite() -> None:
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    logprobs, entropy, _ = fused_linear_logprobs(hidden, weight, torch.tensor([0, 0]), temperature=1.0)
    torch.testing.assert_close(logprobs, torch.tensor([0.0, -2000.0]))
    torch.testing.assert_close(entropy, torch.zeros(2))
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


def test_bfloat16_inputs_give_float32_results_and_bfloat16_gradients() -> None:
    hidden, weight, targets = head_inputs(40, v=64, h=16, dtype=torch.bfloat16)
    logprobs, entropy, _ = fused_linear_logprobs(hidden, weight, targets, temperature=0.7, block_bytes=7 * 64 * 2)
    assert logprobs.dtype is entropy.dtype is torch.float32
    exact = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    want, want_entropy, _ = linear_logprobs(*exact, targets, temperature=0.7)
    # a bfloat16 logit of size 8 is rounded by up to 0.016
    torch.testing.assert_close(logprobs, want, atol=0.06, rtol=0)
    torch.testing.assert_close(entropy, want_entropy, atol=0.06, rtol=0)
    logprobs.sum().backward()
    want.sum().backward()
    for mine, truth in zip((hidden, weight), exact, strict=True):
        assert mine.grad.dtype is torch.bfloat16
        assert (mine.grad.float() - truth.grad).norm() < 0.01 * truth.grad.norm()


def test_no_tokens_give_zero_gradients() -> None:
    hidden, weight, targets = head_inputs(0)
    logprobs, entropy, _ = fused_linear_logprobs(hidden, weight, targets, temperature=1.0)
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert weight.grad.abs().sum() == 0


class LargestTensor(TorchDispatchMode):
    """Watches the size of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("with_entropy", [False, True])
def test_logits_exist_for_one_block_at_a_time(with_entropy: bool) -> None:
    m, v, h, block = 200, 300, 4, 6000
    hidden, weight, targets = head_inputs(m, v, h)
    with LargestTensor() as largest:
        logprobs, entropy, _ = fused_linear_logprobs(hidden, weight, targets, temperature=0.9, block_bytes=block * 8)
        (logprobs.sum() + (entropy.sum() if with_entropy else 0)).backward()
    assert largest.numel == block
