"""Signals from sampled tokens against the divergence by its definition over a whole vocabulary."""

from __future__ import annotations

import pytest
import torch
from raylign.trainer.functional.distillation import divergence_estimate, divergence_signal
from torch import Tensor

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
VOCAB = 11


def models(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of policy (with gradient) and teacher, [5, VOCAB] float64."""
    gen = torch.Generator().manual_seed(seed)
    policy, teacher = (2 * torch.randn(5, VOCAB, generator=gen, dtype=torch.float64) for _ in range(2))
    return policy.requires_grad_(), teacher


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) of probabilities, each row. [5]"""
    return (a * (a.log() - b.log())).sum(-1)


def truth(policy: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """By the definition. [5]"""
    q, p = policy.softmax(-1), teacher.softmax(-1)
    if beta in (0.0, 1.0):
        return kl(q, p) if beta else kl(p, q)
    m = beta * p + (1 - beta) * q
    return (beta * kl(p, m) + (1 - beta) * kl(q, m)) / (beta * (1 - beta))


def drawn(policy: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every token as if drawn: its probability, its log-prob with gradient, and log p - log q. [5, VOCAB] each"""
    log_q, log_p = policy.log_softmax(-1), teacher.log_softmax(-1)
    return log_q.detach().exp(), log_q, log_p - log_q.detach()


@pytest.mark.parametrize("beta", BETAS)
def test_the_mean_over_the_policys_tokens_is_the_divergence_and_its_gradient(beta: float) -> None:
    for seed in range(5):
        policy, teacher = models(seed)
        q, log_q, log_r = drawn(policy, teacher)
        estimate = (q * divergence_estimate(log_r, beta)).sum(-1)
        expected = truth(policy, teacher, beta)
        torch.testing.assert_close(estimate, expected.detach(), rtol=1e-10, atol=1e-12)
        (exact,) = torch.autograd.grad(expected.sum(), policy, retain_graph=True)
        (ours,) = torch.autograd.grad(-(q * divergence_signal(log_r, beta) * log_q).sum(), policy)
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-11)


def test_both_are_continuous_in_beta_finite_far_out_and_zero_where_the_models_agree() -> None:
    log_r = torch.linspace(-4, 3, 29, dtype=torch.float64)
    for at, near in ((0.0, 1e-6), (1.0, 1 - 1e-6)):
        for form in (divergence_signal, divergence_estimate):
            torch.testing.assert_close(form(log_r, near), form(log_r, at), rtol=1e-3, atol=1e-3)
    far = torch.tensor([-500.0, -30.0, 0.0, 30.0, 500.0])
    for beta in BETAS:
        assert divergence_signal(far, beta).isfinite().all() and divergence_estimate(far, beta).isfinite().all()
        assert divergence_signal(far, beta)[2] == pytest.approx(0, abs=1e-6)
        assert divergence_estimate(log_r, beta).min() >= -1e-12
        assert divergence_estimate(torch.zeros(1), beta).item() == pytest.approx(0, abs=1e-6)
    assert divergence_signal(far, 0.5).min() > -1.4, "log(1 - beta) / beta bounds it"
