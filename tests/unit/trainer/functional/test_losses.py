"""Token and pair losses: hand-computed values and where the gradient stops."""

from __future__ import annotations

import math

import pytest
import torch
from raylign.trainer.functional.losses import (
    ClipRange,
    bradley_terry_loss,
    clipped_policy_loss,
    clipped_value_loss,
    log_ratio,
    truncated_importance_weights,
)


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "want", "gradient"),
    [
        (1.0, 2.0, 0.0, -2.0, -2.0),
        (1.5, 2.0, 0.0, -2.6, 0.0),  # above 1 + high = 1.3: no further reward
        (0.5, 2.0, 0.0, -1.0, -2.0),  # below, but the advantage wants it back up
        (0.5, -2.0, 0.0, 1.8, 0.0),  # below 1 - low = 0.9: no further push down
        (1.5, -2.0, 0.0, 3.0, 2.0),
        (5.0, -2.0, 3.0, 6.0, 0.0),  # dual clip
        (2.0, -2.0, 3.0, 4.0, 2.0),
        (5.0, 2.0, 3.0, -2.6, 0.0),  # dual clip leaves positive advantages alone
    ],
)
def test_policy_clip(ratio: float, advantage: float, dual: float, want: float, gradient: float) -> None:
    r = torch.tensor([ratio], requires_grad=True)
    loss, clipped = clipped_policy_loss(r, torch.tensor([advantage]), ClipRange(low=0.1, high=0.3, dual=dual))
    loss.sum().backward()
    assert loss.item() == pytest.approx(want)
    assert r.grad.item() == pytest.approx(gradient)
    assert clipped.item() == (gradient == 0)


def test_log_ratio_is_clamped_before_exp() -> None:
    ratio = log_ratio(torch.tensor([0.0, -500.0]), torch.tensor([-500.0, 0.0]))
    assert ratio.tolist() == [20, -20]
    assert ratio.exp().isfinite().all()


def test_importance_weights_are_capped_above_only_and_held() -> None:
    old = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    weights = truncated_importance_weights(old, torch.tensor([-1.0, -3.0, -0.5]), 2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-0.5)])
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("value", "clip", "want", "gradient"),
    [
        (1.5, 0.0, 0.125, -0.5),  # plain
        (1.5, 0.2, 0.32, 0.0),  # old 1, so clipped to 1.2: (1.2 - 2)^2 / 2 is the larger
        (1.1, 0.2, 0.405, -0.9),  # inside
        (3.0, 0.2, 0.5, 1.0),  # past the return: plain (3-2)^2 is larger than clipped (1.2-2)^2
    ],
)
def test_value_clip(value: float, clip: float, want: float, gradient: float) -> None:
    v = torch.tensor([value], requires_grad=True)
    loss, clipped = clipped_value_loss(v, torch.tensor([1.0]), torch.tensor([2.0]), clip)
    loss.sum().backward()
    assert loss.item() == pytest.approx(want)
    assert v.grad.item() == pytest.approx(gradient)
    assert clipped.item() == (gradient == 0)


def test_bradley_terry_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0])
    none, margin = torch.zeros(2), torch.tensor([0.5, 0.5])
    sigmoid = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))]
    plain = bradley_terry_loss(chosen, rejected, none, centering_coef=0.0)
    assert plain.tolist() == pytest.approx([-math.log(s) for s in sigmoid])
    wide = bradley_terry_loss(chosen, rejected, margin, centering_coef=0.0)
    assert wide.tolist() == pytest.approx([math.log1p(math.exp(-0.5)), math.log1p(math.exp(1.5))])
    smoothed = bradley_terry_loss(chosen, rejected, margin, label_smoothing=0.2, centering_coef=0.0)
    turned = bradley_terry_loss(rejected, chosen, -margin, centering_coef=0.0)
    torch.testing.assert_close(smoothed, 0.8 * wide + 0.2 * turned)
    centred = bradley_terry_loss(chosen, rejected, none, centering_coef=0.1)
    assert (centred - plain).tolist() == pytest.approx([0.1, 0.9])


def test_bradley_terry_does_not_overflow() -> None:
    x = torch.tensor([-500.0], requires_grad=True)
    loss = bradley_terry_loss(x, torch.tensor([500.0]), torch.zeros(1), centering_coef=0.0)
    loss.backward()
    assert loss.item() == 1000 and x.grad.item() == -1
