"""Masked statistics against plain Python."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.trainer.functional.masked import explained_variance, masked_mean, masked_moments, masked_sum, masked_whiten

_entries = st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=40)


@settings(deadline=None)  # a busy machine is no failure
@given(_entries)
def test_moments_and_whitening_read_only_the_mask(entries: list[tuple[float, bool]]) -> None:
    mask = torch.tensor([m for _, m in entries])
    x = torch.tensor([v if m else math.nan for v, m in entries], dtype=torch.float64)
    kept = [v for v, m in entries if m]
    mean, variance = masked_moments(x, mask)
    white = masked_whiten(x, mask)
    assert not white[~mask].any()
    assert float(masked_sum(x, mask)) == pytest.approx(math.fsum(kept))
    if kept:
        assert float(mean) == pytest.approx(statistics.fmean(kept), abs=1e-9)
        assert float(variance) == pytest.approx(statistics.pvariance(kept), abs=1e-6)
        scale = math.sqrt(statistics.pvariance(kept) + 1e-8)
        want = [(v - statistics.fmean(kept)) / scale for v in kept]
        assert white[mask].tolist() == pytest.approx(want, abs=1e-5)


def test_mean_divides_by_the_denominator_it_is_given() -> None:
    x, mask = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True])
    assert float(masked_mean(x, mask, 10.0)) == 0.5


def test_parts_with_the_global_denominator_add_up() -> None:
    x, mask = torch.arange(7.0), torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()
    whole = masked_mean(x, mask, 5)
    parts = masked_mean(x[:3], mask[:3], 5) + masked_mean(x[3:], mask[3:], 5)
    torch.testing.assert_close(whole, parts)


def test_explained_variance() -> None:
    target, mask = torch.tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([True, True, True, False])
    assert explained_variance(target, target, mask) == 1
    assert explained_variance(target + 5, target, mask) == 1  # a constant offset explains the variance
    assert explained_variance(torch.zeros(4), target, mask) == 0
    assert explained_variance(-target, target, mask) == pytest.approx(-3)
    assert math.isnan(explained_variance(target, torch.ones(4), mask))
