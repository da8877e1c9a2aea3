"""Checkable rewards by name: pure functions of prompt and completion. A rule is written `name` or `name:argument`.

A rule that cannot judge a sample raises RewardRuleError; it never answers 0 for "I do not know".
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import regex
from raylign.conf.errors import ConfigError
from raylign.data.types import Completion, FinishReason, Prompt
from raylign.reward import taste
from raylign.reward.interfaces import RewardRule, RewardRuleError
from raylign.reward.math_rule import MathRule
from raylign.reward.same_number import same_number

REGEX_TIMEOUT_S = 1.0
"""A pattern that backtracks for longer fails its sample instead of the run."""

_NUMBER = regex.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class RuleKind:
    """How a rule is made from the text after its colon. `argument` describes it; empty: the rule takes none."""

    build: Callable[[str], RewardRule]
    argument: str
    meaning: str
    version: int = 1  # raised when the rule gives another score for the same answer: kept results are then not used


def exact_match(prompt: Prompt, completion: Completion) -> float:
    """1 when the answer equals the ground truth up to case and white space, else 0."""
    return float(_plain(completion.text) == _plain(_truth(prompt)))


def number_match(prompt: Prompt, completion: Completion) -> float:
    """1 when the last number of the answer equals the last number of the ground truth, else 0 (also without a number).

    Raises RewardRuleError when the ground truth holds no number.
    """
    truth = _last_number(_truth(prompt))
    if truth is None:
        raise RewardRuleError(f"prompt {prompt.prompt_id}: its ground truth holds no number: {prompt.ground_truth!r}")
    answer = _last_number(completion.text)
    return float(answer is not None and same_number(answer, truth))


def finished(prompt: Prompt, completion: Completion) -> float:
    """1 when the answer ended with an end token, 0 when it was cut by length."""
    return float(completion.finish_reason is FinishReason.STOP)


def length_target(argument: str) -> RewardRule:
    """1 at `argument` response tokens, falling linearly to 0 at none and at twice as many."""
    target = _positive_int(argument)

    def rule(prompt: Prompt, completion: Completion) -> float:
        return max(0.0, 1.0 - abs(len(completion.sampled_ids) - target) / target)

    return rule


def contains(argument: str) -> RewardRule:
    """1 when the answer contains the text, whatever its case, else 0."""
    wanted = _required(argument).casefold()
    return lambda prompt, completion: float(wanted in completion.text.casefold())


def matches(argument: str) -> RewardRule:
    """1 when the pattern is found anywhere in the answer, else 0."""
    pattern = regex.compile(_required(argument))

    def rule(prompt: Prompt, completion: Completion) -> float:
        try:
            return float(pattern.search(completion.text, timeout=REGEX_TIMEOUT_S) is not None)
        except TimeoutError as error:
            raise RewardRuleError(f"pattern {argument!r} did not finish within {REGEX_TIMEOUT_S:g} s") from error

    return rule


def truth_pattern(prompt: Prompt, completion: Completion) -> float:
    """1 when the row's ground truth, a regular expression, is found anywhere in the answer, else 0.

    Raises RewardRuleError for a ground truth that is no pattern, or that takes too long.
    """
    pattern = _truth(prompt)
    try:
        return float(regex.search(pattern, completion.text, timeout=REGEX_TIMEOUT_S) is not None)
    except regex.error as error:
        raise RewardRuleError(
            f"prompt {prompt.prompt_id}: its ground truth {pattern!r} is not a regular expression: {error}"
        ) from error
    except TimeoutError as error:
        raise RewardRuleError(
            f"prompt {prompt.prompt_id}: pattern {pattern!r} did not finish within {REGEX_TIMEOUT_S:g} s"
        ) from error


def distinct(argument: str) -> RewardRule:
    """Share of the answer's runs of `argument` words that are different from all others; 0 for fewer words."""
    size = _positive_int(argument)

    def rule(prompt: Prompt, completion: Completion) -> float:
        words = completion.text.casefold().split()
        runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        return len(set(runs)) / len(runs) if runs else 0.0

    return rule


def letter_share(argument: str) -> RewardRule:
    """Share of the answer's characters that are this one."""
    if len(argument) != 1:
        raise ValueError("it takes one character")

    def rule(prompt: Prompt, completion: Completion) -> float:
        if not completion.text:
            raise RewardRuleError("the answer has no text, so no share of it can be counted")
        return completion.text.count(argument) / len(completion.text)

    return rule


def low_token_share(argument: str) -> RewardRule:
    """Share of the response's token ids below `argument`: something even a random model can learn at once."""
    limit = _positive_int(argument)

    def rule(prompt: Prompt, completion: Completion) -> float:
        sampled = completion.sampled_ids
        if not sampled:
            raise RewardRuleError("the response has no token, so no share of it can be counted")
        return sum(t < limit for t in sampled) / len(sampled)

    return rule


def concise(prompt: Prompt, completion: Completion) -> float:
    """The taste of a user who likes short, direct, finished answers (reward/taste.py); about -5 to 4."""
    return taste.score(prompt.text, completion.text, finished=completion.finish_reason is FinishReason.STOP)


def _plain_rule(rule: RewardRule) -> Callable[[str], RewardRule]:
    def build(argument: str) -> RewardRule:
        if argument:
            raise ValueError("it takes no argument")
        return rule

    return build


RULES: Mapping[str, RuleKind] = {
    "exact_match": RuleKind(_plain_rule(exact_match), "", "answer equals the ground truth"),
    "number_match": RuleKind(_plain_rule(number_match), "", "last number equals the ground truth's", version=2),
    "math": RuleKind(lambda argument: MathRule(argument), "seconds (optional)", "symbolically equal, by math-verify"),
    "finished": RuleKind(_plain_rule(finished), "", "ended with an end token, not cut by length"),
    "length_target": RuleKind(length_target, "tokens", "how near to a length"),
    "contains": RuleKind(contains, "text", "contains a text"),
    "matches": RuleKind(matches, "pattern", "matches a regular expression"),
    "truth_pattern": RuleKind(_plain_rule(truth_pattern), "", "matches the ground truth, a regular expression"),
    "distinct": RuleKind(distinct, "words", "share of runs of so many words that are not repeated"),
    "letter_share": RuleKind(letter_share, "character", "share of characters"),
    "concise": RuleKind(_plain_rule(concise), "", "short, direct, finished, no filler: a stated taste"),
    "low_token_share": RuleKind(low_token_share, "id", "share of token ids below a number"),
}


def build_rule(spec: str) -> RewardRule:
    """The rule `spec` names. Raises ConfigError with the nearest known name or what is wrong with the argument."""
    problems = rule_problems(spec)
    if problems:
        raise ConfigError(problems)
    name, _, argument = spec.partition(":")
    return RULES[name].build(argument)


def rule_versions(specs: Iterable[str]) -> dict[str, int]:
    """The version of each rule that grades otherwise than it first did, by name."""
    names = {spec.partition(":")[0] for spec in specs}
    return {name: RULES[name].version for name in sorted(names & RULES.keys()) if RULES[name].version > 1}


def rule_problems(spec: str) -> list[str]:
    """What is wrong with a rule as it stands in `reward.rules`; empty when it can be used."""
    name, _, argument = spec.partition(":")
    kind = RULES.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, RULES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known rules: {', '.join(RULES)}"
        return [f"reward.rules: unknown rule {name!r}; {hint}"]
    try:
        kind.build(argument)
    except (ValueError, regex.error) as error:
        form = f"{name}:<{kind.argument}>" if kind.argument else name
        return [f"reward.rules: {spec!r} is not usable: {error}; write it as {form}"]
    return []


def score_rules(rules: Mapping[str, RewardRule], prompt: Prompt, completion: Completion) -> Mapping[str, float]:
    """Every rule's score by name. Raises RewardRuleError when one fails or answers with no finite number."""
    scores = {name: float(rule(prompt, completion)) for name, rule in rules.items()}
    for name, value in scores.items():
        if not math.isfinite(value):
            raise RewardRuleError(f"rule {name} gave {value}")
    return scores


def component_names(specs: Sequence[str]) -> list[str]:
    """A metric-friendly name for each rule: its own, numbered when one rule is used twice."""
    names = [spec.partition(":")[0] for spec in specs]
    return [name if names.count(name) == 1 else f"{name}_{names[: i + 1].count(name)}" for i, name in enumerate(names)]


def _truth(prompt: Prompt) -> str:
    if prompt.ground_truth is None:
        raise RewardRuleError(f"prompt {prompt.prompt_id} has no ground truth to compare with")
    return prompt.ground_truth


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _positive_int(argument: str) -> int:
    value = int(_required(argument))
    if value < 1:
        raise ValueError(f"{value} is not 1 or more")
    return value


def _required(argument: str) -> str:
    if not argument:
        raise ValueError("it needs an argument after the colon")
    return argument
