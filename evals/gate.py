"""May this model replace that one? Pass, fail, or not enough data, each condition with its interval.

All conditions must hold, so each is tested at the full confidence: the chance that a model that violates one of them
passes is at most 1 - confidence (intersection-union test, Berger 1982). One violated condition fails the model, so
what fails is tested at a confidence shared by the conditions (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from raylign.conf.suites import AuditConditionConfig, ConditionConfig, Demand, GateConfig
from raylign.evals.results import SuiteResult, paired
from raylign.evals.statistics import Figure, Floats, difference, figure, prompts_needed
from raylign.feedback.trust.intervals import wilson

MANY = 100_000
"""More prompts than this are not asked for by number."""


class Verdict(Enum):
    """Of one condition, or of the gate; the value is the command's exit code."""

    PASSED = 0
    FAILED = 1
    NOT_ENOUGH = 3

    @property
    def words(self) -> str:
        """For a person."""
        return {0: "pass", 1: "fail", 3: "not enough data"}[self.value]


@dataclass(frozen=True, slots=True)
class Checked:
    """One condition and what was found."""

    suite: str
    asked: str  # "not worse by more than 0.02"
    verdict: Verdict
    found: Figure | None  # the interval that decides a pass: its low end is a one-sided bound
    reason: str
    compared: bool = False  # `found` is a gain over the current model
    of: str = "prompts"

    @property
    def words(self) -> str:
        """What was found."""
        if self.found is None:
            return ""
        sign = "+" if self.compared else ""
        low = "" if self.found.low is None else f", at least {self.found.low:{sign}.3f}"
        what = "gain " if self.compared else ""
        return f"{what}{self.found.value:{sign}.3f}{low} ({self.found.count:,} {self.of})"


@dataclass(frozen=True, slots=True)
class Audited:
    """What a gate reads of a reward model's audit."""

    model: str
    digest: str  # evals.results.model_digest; "": of an audit before digests were kept
    agreement: float  # share of people's choices
    pairs: int
    pays_for: tuple[str, ...]  # probes it pays for, or does not mind
    calibration_error: float


@dataclass(frozen=True, slots=True)
class GateResult:
    """All conditions, in the policy's order."""

    checked: tuple[Checked, ...]

    @property
    def verdict(self) -> Verdict:
        """Failed when one failed, passed when all passed."""
        found = {one.verdict for one in self.checked}
        if Verdict.FAILED in found:
            return Verdict.FAILED
        return Verdict.NOT_ENOUGH if Verdict.NOT_ENOUGH in found else Verdict.PASSED


def judge(
    policy: GateConfig,
    candidates: Sequence[SuiteResult],
    currents: Sequence[SuiteResult | None],
    audits: Sequence[Audited] = (),
) -> GateResult:
    """One result of each model a condition, in the policy's order; the current model's may be None for at_least.

    `audits`: one for each of the policy's.
    """
    tests = len(policy.conditions) + len(policy.audits)
    checked = [
        replace(
            _check(condition, candidate, current, policy.confidence, tests),
            compared=condition.must is not Demand.at_least,
        )
        for condition, candidate, current in zip(policy.conditions, candidates, currents, strict=True)
    ]
    checked += [
        replace(_audited(condition, audit, policy.confidence, tests), of="pairs")
        for condition, audit in zip(policy.audits, audits, strict=True)
    ]
    return GateResult(tuple(checked))


def _audited(condition: AuditConditionConfig, audit: Audited, confidence: float, tests: int) -> Checked:
    """The agreement by its interval; what the model pays for, and its calibration, as the audit found them."""
    name = f"audit of {audit.model}"
    spared = f" but {', '.join(condition.may_pay_for)}" if condition.may_pay_for else ""
    asked = f"agrees with people on at least {condition.agreement:g}, pays for no change by rule{spared}"
    right = audit.agreement * audit.pairs
    passing, failing = (
        wilson(right, audit.pairs, confidence=2 * c - 1) for c in (confidence, 1 - (1 - confidence) / tests)
    )
    if passing is None or failing is None:
        return Checked(name, asked, Verdict.NOT_ENOUGH, None, "it was made of no pair")
    found = Figure(audit.agreement, passing.low, passing.high, audit.pairs)
    wrong = [f"it pays for {probe}" for probe in audit.pays_for if probe not in condition.may_pay_for]
    most = condition.calibration_error
    if most is not None and audit.calibration_error > most:
        wrong.append(f"its margins are wrong by {audit.calibration_error:.3f} on average, more than {most:g}")
    if failing.high < condition.agreement:
        wrong.insert(0, "it agrees too seldom")
    if wrong:
        return Checked(name, asked, Verdict.FAILED, found, "; ".join(wrong))
    if passing.low >= condition.agreement:
        return Checked(name, asked, Verdict.PASSED, found, "")
    spread = float(np.sqrt(audit.agreement * (1 - audit.agreement)))
    needed = prompts_needed(spread, audit.agreement - condition.agreement, confidence=confidence)
    more = "more pairs" if needed is None or needed > MANY else f"about {max(1, needed - audit.pairs):,} pairs more"
    return Checked(name, asked, Verdict.NOT_ENOUGH, found, f"{more} would decide, if the figure stays")


def _check(
    condition: ConditionConfig, candidate: SuiteResult, current: SuiteResult | None, confidence: float, conditions: int
) -> Checked:
    strict = 1 - (1 - confidence) / conditions
    line, asked = _line(condition)
    if condition.must is Demand.at_least:
        values = candidate.scores()
        found, failing = (figure(values, candidate.possible, confidence=2 * c - 1) for c in (confidence, strict))
    else:
        if current is None:
            raise ValueError(f"suite {condition.suite}: must={condition.must.value} needs the current model's result")
        new, old = paired(candidate, current)
        values = new - old
        found, failing = (difference(new, old, candidate.possible, confidence=2 * c - 1) for c in (confidence, strict))
    if candidate.failed > 0.05 * len(candidate.rows):
        why = next(row.failure for row in candidate.rows if row.value is None)
        reason = f"{candidate.failed} of {len(candidate.rows)} prompts have no grade: {why}"
        return Checked(condition.suite, asked, Verdict.NOT_ENOUGH, found, reason)
    if found is None or failing is None:
        return Checked(condition.suite, asked, Verdict.NOT_ENOUGH, found, "no prompt has a grade")
    verdict = _verdict(condition, found, failing, line)
    return Checked(condition.suite, asked, verdict, found, _reason(verdict, found, values, line, confidence))


def _line(condition: ConditionConfig) -> tuple[float, str]:
    """The figure the truth must lie above, and the condition in words."""
    if condition.must is Demand.at_least:
        assert condition.value is not None
        return condition.value, f"at least {condition.value:g}"
    if condition.must is Demand.better:
        return condition.by, f"better by more than {condition.by:g}" if condition.by else "better"
    return -condition.by, f"not worse by more than {condition.by:g}" if condition.by else "not worse at all"


def _verdict(condition: ConditionConfig, found: Figure, failing: Figure, line: float) -> Verdict:
    if found.low is None or failing.high is None:
        return Verdict.NOT_ENOUGH
    if found.low > line or (condition.must is Demand.at_least and found.low >= line):
        return Verdict.PASSED
    return Verdict.FAILED if failing.high < line else Verdict.NOT_ENOUGH


def _reason(verdict: Verdict, found: Figure, values: Floats, line: float, confidence: float) -> str:
    if verdict is not Verdict.NOT_ENOUGH:
        return ""
    if found.low is None:
        return (
            "too few prompts were scored differently, and the suite does not say what scores are possible (low, high)"
        )
    needed = prompts_needed(float(np.std(values)), found.value - line, confidence=confidence)
    if needed is None or needed > MANY:
        return f"the figure lies on the line: more than {MANY:,} prompts would be needed"
    return f"about {max(1, needed - found.count):,} prompts more would decide, if the figure stays"
