from __future__ import annotations

import time

import pytest
from raylign.conf.errors import ConfigError
from raylign.data.types import Completion, FinishReason, Message, Prompt, SampleKey, VersionSpan
from raylign.reward.interfaces import RewardRuleError
from raylign.reward.rules import RULES, build_rule, component_names, rule_problems, score_rules


def prompt(truth: str | None = None) -> Prompt:
    return Prompt("p7", (Message("user", "how many?"),), (1, 2), ground_truth=truth)


def answer(text: str = "", *, ids: tuple[int, ...] = (5, 6), cut: bool = False) -> Completion:
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    return Completion(SampleKey(0, "p7", 0), ids, tuple(0.0 for _ in ids), reason, (VersionSpan(1, 0, 1),), text)


@pytest.mark.parametrize(
    ("spec", "truth", "given", "expected"),
    [
        ("exact_match", "Paris", answer("  paris\n"), 1.0),
        ("exact_match", "Paris", answer("Paris."), 0.0),
        ("number_match", "... so #### 1,019", answer("We get 12 + 1007 = 1019.0 in all"), 1.0),
        ("number_match", "#### 19", answer("19 pears, no, 20"), 0.0),
        ("number_match", "-3", answer("minus: -3"), 1.0),
        ("number_match", "19", answer("nineteen"), 0.0),
        ("number_match", "31415926", answer("31415927"), 0.0),  # a millionth is for numbers that are rounded
        ("number_match", "0.3333333", answer("0.33333333"), 1.0),
        ("number_match", "31415926", answer("31415926.4"), 0.0),
        ("number_match", "3", answer("about 2.9999999999"), 1.0),
        ("number_match", "5", answer("it is .5"), 0.0),
        ("number_match", "0.5", answer("it is -.5, no, .5"), 1.0),
        ("number_match", "1e999", answer("1e998"), 0.0),
        ("finished", None, answer("x", cut=True), 0.0),
        ("finished", None, answer("x"), 1.0),
        ("length_target:4", None, answer(ids=(1,) * 4), 1.0),
        ("length_target:4", None, answer(ids=(1,) * 6), 0.5),
        ("length_target:4", None, answer(ids=(1,) * 40), 0.0),
        ("contains:Thank You", None, answer("oh, thank you!"), 1.0),
        ("contains:a:b", None, answer("a:b"), 1.0),
        (r"matches:^\d+$", None, answer("12"), 1.0),
        ("letter_share:e", None, answer("eyes"), 0.5),
        ("low_token_share:10", None, answer(ids=(9, 10, 3, 11)), 0.5),
    ],
)
def test_rules_by_hand(spec: str, truth: str | None, given: Completion, expected: float) -> None:
    assert build_rule(spec)(prompt(truth), given) == expected


@pytest.mark.parametrize(
    ("spec", "given"),
    [
        ("exact_match", answer("Paris")),
        ("number_match", answer("3")),
        ("math", answer("3")),
        ("letter_share:e", answer("")),
        ("low_token_share:3", answer(ids=())),
    ],
)
def test_what_cannot_be_judged_is_an_error_not_a_zero(spec: str, given: Completion) -> None:
    with pytest.raises(RewardRuleError):
        build_rule(spec)(prompt(), given)


def test_a_pattern_that_never_ends_fails_its_sample_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(RewardRuleError, match="did not finish"):
        build_rule("matches:^(a|aa)+$")(prompt(), answer("a" * 60 + "!"))
    assert time.monotonic() - started < 5


def test_a_score_that_is_no_number_is_an_error() -> None:
    with pytest.raises(RewardRuleError, match="taste gave nan"):
        score_rules({"taste": lambda p, c: float("nan")}, prompt(), answer())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("exactmatch", "did you mean exact_match"),
        ("zzz", "known rules: exact_match"),
        ("length_target:ten", "write it as length_target:<tokens>"),
        ("length_target:0", "not 1 or more"),
        ("letter_share:ab", "one character"),
        ("matches:(", "write it as matches:<pattern>"),
        ("finished:yes", "takes no argument"),
        ("contains", "needs an argument"),
        ("math:-1", "not a number of seconds"),
    ],
)
def test_a_bad_rule_is_refused_with_its_fix(spec: str, message: str) -> None:
    assert message in rule_problems(spec)[0]
    with pytest.raises(ConfigError):
        build_rule(spec)


def test_names_of_repeated_rules_differ() -> None:
    assert component_names(["contains:a", "finished", "contains:b"]) == ["contains_1", "finished", "contains_2"]
    assert all(rule_problems(name) == [] for name in ("exact_match", "number_match", "math", "finished"))
    assert len(RULES) == len(set(RULES))
