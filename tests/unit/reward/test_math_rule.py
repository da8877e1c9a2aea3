from __future__ import annotations

import time

import pytest
from raylign.data.types import Completion, FinishReason, Message, Prompt, SampleKey, VersionSpan
from raylign.reward.interfaces import RewardRuleError
from raylign.reward.math_rule import MathRule


def grade(rule: MathRule, truth: str, text: str) -> float:
    prompt = Prompt("p", (Message("user", "?"),), (1,), ground_truth=truth)
    return rule(
        prompt, Completion(SampleKey(0, "p", 0), (1,), (0.0,), FinishReason.STOP, (VersionSpan(0, 0, 1),), text)
    )


@pytest.mark.slow
def test_equal_mathematics_is_equal_and_a_late_comparison_fails_alone() -> None:
    rule = MathRule("2")
    assert grade(rule, "$\\frac{1}{2}$", "So the answer is $0.5$.") == 1.0
    assert grade(rule, "$\\frac{1}{2}$", "So the answer is $0.6$.") == 0.0
    with pytest.raises(RewardRuleError, match="not mathematics"):
        grade(rule, "no numbers here", "1")
    started = time.monotonic()
    with pytest.raises(RewardRuleError, match="did not finish within 2 s"):
        grade(rule, "$\\sum_{k=1}^{1000000} \\sin(k^2)$", "$2$")
    assert time.monotonic() - started < 10
    assert grade(rule, "$x^2-1$", "$(x-1)(x+1)$") == 1.0  # the next sample is judged as ever
