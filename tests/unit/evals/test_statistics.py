"""Intervals of suites: against slow computations of the same definition, and by how often they hold a planted truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from raylign.evals.statistics import (
    FEW_CHANGES,
    Range,
    difference,
    figure,
    holm,
    mcnemar,
    prompts_needed,
    tango,
)
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

Z95 = 1.959963984540054


def slow_score(gained: int, lost: int, n: int, delta: float) -> float:
    """Tango's statistic with the nuisance share found by maximising the trinomial likelihood numerically."""

    def minus_likelihood(share: float) -> float:
        cells = ((gained, share + delta), (lost, share), (n - gained - lost, 1 - 2 * share - delta))
        if any(p < -1e-15 or (p <= 1e-300 and count) for count, p in cells):
            return math.inf
        return -sum(count * math.log(p) for count, p in cells if count)

    found = minimize_scalar(
        minus_likelihood, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-12}
    )
    variance = n * (2 * found.x + delta * (1 - delta))
    return (gained - lost - n * delta) / math.sqrt(variance)


@pytest.mark.parametrize(("gained", "lost", "n"), [(12, 4, 60), (3, 9, 40), (1, 1, 25), (20, 15, 200), (7, 1, 30)])
def test_tango_ends_where_the_slow_statistic_is_the_quantile(gained: int, lost: int, n: int):
    low, high = tango(gained, lost, n, confidence=0.95)

    assert slow_score(gained, lost, n, low) == pytest.approx(Z95, abs=2e-4)
    assert slow_score(gained, lost, n, high) == pytest.approx(-Z95, abs=2e-4)


def test_tango_knows_that_no_change_seen_is_not_no_change():
    low, high = tango(0, 0, 50, confidence=0.95)

    assert high == pytest.approx(Z95**2 / (50 + Z95**2), abs=1e-6)
    assert low == pytest.approx(-high, abs=1e-6)


def test_tango_mirrors():
    low, high = tango(12, 4, 60, confidence=0.9)
    mirrored = tango(4, 12, 60, confidence=0.9)

    assert mirrored == pytest.approx((-high, -low), abs=1e-8)


@pytest.mark.parametrize(("gain", "loss", "n"), [(0.1, 0.1, 60), (0.05, 0.02, 100), (0.3, 0.1, 40)])
def test_paired_shares_are_held_as_often_as_said(gain: float, loss: float, n: int):
    rng = np.random.default_rng(3)
    counts = rng.multinomial(n, [gain, loss, 1 - gain - loss], size=1500)
    ends = [tango(int(g), int(lost), n, confidence=0.95) for g, lost, _ in counts]

    held = np.mean([low <= gain - loss <= high for low, high in ends])

    assert 0.93 <= held <= 0.975


def test_paired_scores_are_held_as_often_as_said():
    rng = np.random.default_rng(4)
    held = []
    for _ in range(1500):
        current = rng.gamma(2.0, 1.0, size=40)
        candidate = current + 0.2 + rng.standard_t(5, size=40)
        found = difference(candidate, current, None, confidence=0.95)
        assert found is not None and found.low is not None and found.high is not None
        held.append(found.low <= 0.2 <= found.high)

    assert 0.935 <= np.mean(held) <= 0.965


def test_few_differences_are_bounded_by_what_scores_can_be_or_not_at_all():
    current = np.linspace(0.1, 0.9, 50)
    candidate = current.copy()
    candidate[: FEW_CHANGES - 1] += 0.01

    bounded = difference(candidate, current, Range(0.0, 1.0), confidence=0.9)
    unbounded = difference(candidate, current, None, confidence=0.9)

    assert bounded is not None and bounded.low is not None and bounded.low < -0.1
    assert unbounded is not None and unbounded.low is None and unbounded.high is None


def test_equal_scores_of_one_model_say_nothing_of_what_was_not_seen():
    scores = np.full(20, 0.5)

    known, unknown = figure(scores, Range(0.0, 1.0), confidence=0.95), figure(scores, None, confidence=0.95)

    assert known is not None and known.low is not None and 0.4 < known.low < 0.5
    assert unknown is not None and unknown.low is None


def test_no_score_is_no_figure():
    empty = np.array([])

    assert figure(empty, None, confidence=0.95) is None
    assert difference(empty, empty, None, confidence=0.95) is None


def test_other_prompts_are_refused():
    with pytest.raises(ValueError, match="3 scores against 2"):
        difference(np.zeros(3), np.zeros(2), None, confidence=0.95)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (7, 3), (40, 41), (1, 9)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int):
    truth = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0

    assert mcnemar(gained, lost) == pytest.approx(truth)


def test_holm_is_the_stepwise_bonferroni():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_as_many_prompts_as_asked_for_decide():
    needed = prompts_needed(0.5, 0.1, confidence=0.95)
    assert needed is not None

    def one_sided_error(n: int) -> float:
        return 1.6448536 * 0.5 / math.sqrt(n)

    assert one_sided_error(needed) <= 0.1 < one_sided_error(needed - 2)
    assert prompts_needed(0.5, 0.0, confidence=0.95) is None
