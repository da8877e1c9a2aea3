"""A destroyed or saturated policy ends the run; one that only rests does not."""

from __future__ import annotations

import math

import pytest
from raylign.conf.errors import RunFailed
from raylign.trainer.loops.watch import LearningWatch


def play(*steps: dict[str, float], vocab_size: int = 512) -> int:
    """How many of the steps the watch lets pass; it raises at the first that it does not."""
    watch = LearningWatch("policy", lr_key="policy.optim.lr", vocab_size=vocab_size)
    for number, metrics in enumerate(steps, start=1):
        watch.check(number, {f"policy/{k}" if "/" not in k else k: v for k, v in metrics.items()})
    return len(steps)


def test_what_a_learning_rate_of_a_million_leaves_ends_the_run() -> None:
    """The figures of the run that ended with exit code 0: entropy ln 512 and gradient 0 from step 2 on."""
    seen = [{"entropy": 6.2, "grad_norm": 1.3, "reward/std": 0.2}]
    seen += [{"entropy": math.log(512), "grad_norm": 0.0, "reward/std": 0.2}] * 3
    with pytest.raises(RunFailed, match=r"policy, step 4: the gradient has been exactly 0 .* lower policy\.optim\.lr"):
        play(*seen)
    play(*seen[:3])


def test_a_language_model_that_becomes_uniform_ends_the_run_at_once() -> None:
    with pytest.raises(RunFailed, match=r"policy, step 2: the policy is destroyed: its entropy is 6\.200 nats"):
        play({"entropy": 2.1, "grad_norm": 1.0}, {"entropy": 6.2, "grad_norm": 0.4})


def test_a_random_model_begins_uniform_and_may() -> None:
    uniform = {"entropy": 6.23, "grad_norm": 0.5}
    assert play(*[uniform] * 20) == 20
    with pytest.raises(RunFailed, match="policy, step 2"):
        play({**uniform, "entropy": 2.0}, uniform)  # one that has become so may not


def test_rewards_that_do_not_differ_give_no_gradient_and_end_nothing() -> None:
    still = {"entropy": 2.0, "grad_norm": 0.0, "reward/std": 0.0}
    assert play(*[still] * 20) == 20
    with pytest.raises(RunFailed, match="the gradient has been exactly 0"):
        play(*[{**still, "reward/std": 0.2}] * 20)


def test_a_gradient_in_between_starts_the_count_anew() -> None:
    zero, some = {"grad_norm": 0.0}, {"grad_norm": 1e-12}
    play(zero, zero, some, zero, zero)
    with pytest.raises(RunFailed):
        play(some, zero, zero, zero)
