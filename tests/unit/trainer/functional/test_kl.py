"""KL estimators, the gradient of the KL loss on an enumerable policy, and the coefficient's rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from raylign.conf.schema import KLController, KLEstimator
from raylign.data.types import TokenBatch
from raylign.trainer.functional.kl import KLState, kl_estimate, kl_loss, sequence_kl


def _policies() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(3)
    theta, ref, old = torch.randn(3, 6, generator=gen, dtype=torch.float64)
    return theta.requires_grad_(), ref.log_softmax(0), old.log_softmax(0)


def test_estimators_by_hand() -> None:
    logp, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])  # x = 1, -1
    assert kl_estimate(logp, ref, KLEstimator.k1).tolist() == [1, -1]
    assert kl_estimate(logp, ref, KLEstimator.k2).tolist() == [0.5, 0.5]
    assert kl_estimate(logp, ref, KLEstimator.k3).tolist() == pytest.approx([math.exp(-1), math.e - 2])


def test_estimates_are_clamped_and_finite() -> None:
    logp, ref = torch.tensor([0.0, -200.0]), torch.tensor([-200.0, 0.0])
    for estimator in KLEstimator:
        assert kl_estimate(logp, ref, estimator).isfinite().all()
        assert kl_estimate(logp, ref, estimator, clamp=10.0).abs().max() == 10


@pytest.mark.parametrize("estimator", list(KLEstimator))
def test_loss_has_the_gradient_of_the_true_reverse_kl(estimator: KLEstimator) -> None:
    """Expectation over pi_old, enumerated; pi has moved away from it."""
    theta, ref, old = _policies()
    logp = theta.log_softmax(0)
    true_kl = (logp.exp() * (logp - ref)).sum()
    loss = (old.exp() * kl_loss(logp, ref, (logp - old).exp(), estimator)).sum()
    if estimator is not KLEstimator.k2:  # k2's value is biased
        torch.testing.assert_close(loss, true_kl, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(loss, theta, retain_graph=True)
    (want,) = torch.autograd.grad(true_kl, theta)
    torch.testing.assert_close(grad, want, rtol=1e-10, atol=1e-12)


def test_differentiating_k3_itself_would_be_wrong() -> None:
    theta, ref, _ = _policies()
    logp = theta.log_softmax(0)
    (naive,) = torch.autograd.grad((logp.exp().detach() * kl_estimate(logp, ref, KLEstimator.k3)).sum(), theta)
    (want,) = torch.autograd.grad((theta.softmax(0) * (theta.log_softmax(0) - ref)).sum(), theta)
    assert (naive - want).norm() > 0.1 * want.norm()


def test_sequence_kl_sums_the_response_only() -> None:
    tokens = TokenBatch.from_sequences([[0] * 3, [0] * 2], [[False, True, True], [False, True]])
    kl = sequence_kl(torch.tensor([9.0, 1.0, 2.0, 9.0, 4.0]), torch.tensor([0.0, 0.5, 0.0, 0.0, 5.0]), tokens)
    assert kl.tolist() == [2.5, -1.0]


def test_adaptive_coefficient_by_hand() -> None:
    state = KLState(KLController.adaptive, coef=0.1, target=4.0, horizon=100.0)
    assert state.update(4.0, 50).coef == pytest.approx(0.1)
    assert state.update(4.4, 50).coef == pytest.approx(0.1 * (1 + 0.1 * 0.5))
    assert state.update(40.0, 50).coef == pytest.approx(0.1 * (1 + 0.2 * 0.5))  # error clipped
    assert state.update(-3.0, 50).coef == pytest.approx(0.1 * (1 - 0.2 * 0.5))
    assert state.update(0.0, 10**6).coef == pytest.approx(0.1 * 0.8)  # never negative
    assert state.coef == 0.1


def test_adaptive_coefficient_finds_the_price_of_its_target() -> None:
    state = KLState(KLController.adaptive, coef=1.0, target=2.0, horizon=50.0)
    for _ in range(400):
        state = state.update(0.5 / state.coef, 10)  # KL falls as its price rises
    assert 0.5 / state.coef == pytest.approx(2.0, rel=0.02)


def test_resumed_state_goes_on_as_if_nothing_happened() -> None:
    start = KLState(KLController.adaptive, coef=0.1, target=4.0, horizon=100.0)
    half = start.update(9.0, 32)
    restored = replace(start, coef=half.coef)
    assert restored.update(1.0, 32) == half.update(1.0, 32)


def test_fixed_coefficient_stays() -> None:
    state = KLState(KLController.fixed, coef=0.3)
    assert state.update(99.0, 64) is state
    assert state.update(math.nan, 64) is state


@pytest.mark.parametrize(
    "bad", [{"target": 0.0}, {"target": -1.0}, {"horizon": 0.0}, {"coef": 0.0}, {"coef": math.nan}]
)
def test_a_rule_that_cannot_work_is_refused(bad: dict[str, float]) -> None:
    good = {"coef": 0.1, "target": 4.0, "horizon": 100.0}
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        KLState(KLController.adaptive, **(good | bad))


def test_a_missing_kl_is_refused() -> None:
    with pytest.raises(ValueError, match="nan"):
        KLState(KLController.adaptive, 0.1, 4.0, 100.0).update(math.nan, 8)
