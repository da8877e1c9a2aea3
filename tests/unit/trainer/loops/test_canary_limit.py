"""The canary's limit: measured where nothing is set, and never by an engine that computes something else."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from raylign.rollout.interfaces import Canary
from raylign.rollout.reports import canary_gap
from raylign.trainer.loops.canary_limit import EXACT, ROUNDED, CanaryLimit


def test_a_given_limit_stays_whatever_is_measured() -> None:
    limit = CanaryLimit(0.2)
    assert limit.value == limit.settle(0, [0.001]) == limit.settle(1, [0.9]) == 0.2
    assert limit.source() == "sync.max_canary_gap=0.2"


def test_the_first_publication_fixes_the_limit_and_says_it(caplog: pytest.LogCaptureFixture) -> None:
    limit = CanaryLimit(0.0)
    assert limit.value == ROUNDED.ceiling
    with caplog.at_level(logging.WARNING):
        assert limit.settle(0, [0.06]) == pytest.approx(0.18)
        assert limit.settle(1, [0.15]) == limit.value == pytest.approx(0.18), "a later gap moved the limit"
    assert [record.message for record in caplog.records] == [
        "version 0: engine and learner serve the same weights and differ by 0.06 nats a token on the canaries; an "
        "engine beyond 0.18 is refused from now on (sync.max_canary_gap=0)"
    ]
    assert "measured at the first publication" in limit.source()


@pytest.mark.parametrize(
    ("bounds", "gap", "expected"),
    [(ROUNDED, 0.0, 0.02), (ROUNDED, 0.5, 1.0), (EXACT, 1e-6, 1e-3), (EXACT, 0.004, 0.012), (EXACT, 0.03, 0.05)],
)
def test_floor_and_ceiling(bounds, gap: float, expected: float) -> None:
    assert CanaryLimit(0.0, bounds).settle(0, [gap]) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [math.inf, math.nan, 1.2])
def test_an_engine_beyond_the_ceiling_measures_nothing(wrong: float) -> None:
    limit = CanaryLimit(0.0)
    assert limit.settle(0, [wrong]) == 1.0 and limit.settle(0, []) == 1.0
    assert not wrong <= limit.value
    assert limit.settle(1, [wrong, 0.05]) == pytest.approx(0.15)


def test_one_wrong_engine_beside_a_right_one_is_not_the_noise() -> None:
    assert CanaryLimit(0.0).settle(0, [0.9, 0.06]) == pytest.approx(0.18)


def _gap(wrong: float, seed: int) -> float:
    """Of 64 tokens whose log-probs are off by noise as bfloat16 has it, and by `wrong` times themselves."""
    generator = torch.Generator().manual_seed(seed)
    truth = -torch.rand(64, generator=generator) * 12
    noise = 0.03 * torch.randn(64, generator=generator)
    canary = Canary(tuple(range(65)), tuple(truth.tolist()))
    return canary_gap([canary], [(truth * (1 + wrong) + noise).tolist()])


def test_noise_passes_for_a_thousand_versions_and_a_model_that_is_off_does_not() -> None:
    limit = CanaryLimit(0.0)
    limit.settle(0, [_gap(0.0, 0)])
    assert all(_gap(0.0, seed) <= limit.value for seed in range(1, 1000))
    assert all(_gap(0.05, seed) > limit.value for seed in range(1, 100))
