"""The yaml files of `raylign eval` and `raylign gate`, read into typed settings with every problem named at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from raylign.conf.errors import ConfigError
from raylign.conf.schema import RewardConfig
from raylign.conf.typed_file import read_typed

_OF_ROWS = ("kind", "prompts", "columns", "reward", "right_at", "samples", "temperature")
"""Settings of a suite with rows of its own."""

_BRACED = re.compile(r"\{([a-z][a-z0-9-]*)\}")


class SuiteKind(Enum):
    """What is asked of the model."""

    answers = "answers"  # answer every prompt; the answers are graded
    text_loss = "text_loss"  # log-prob of given texts, nats a token: what the model still knows of ordinary text


class Demand(Enum):
    """What a gate asks of one suite."""

    not_worse = "not_worse"  # than the current model, by more than `by`
    better = "better"  # than the current model, by more than `by`
    at_least = "at_least"  # `value`, whatever the current model does


@dataclass(kw_only=True)
class HarnessConfig:
    """Tasks of lm-evaluation-harness, which has to be installed (the extra `harness`)."""

    tasks: list[str] = field(default_factory=list)
    """Names of tasks, groups or tags, as `lm_eval ls tasks` lists them."""
    limit: int = 0
    """First rows of each task that are asked; 0: all."""
    num_fewshot: int | None = None
    """Examples before each question; null: as the task says."""
    include_path: str = ""
    """Folder with tasks of your own, a path beside the suite's file."""
    apply_chat_template: bool = False
    """Ask in the model's chat template; false, as the harness itself does unless it is told to."""
    metric: str = ""
    """What is counted, as acc_norm, or exact_match,flexible-extract with its filter; empty: the task's first."""


@dataclass(kw_only=True)
class SuiteConfig:
    """One suite of prompts and how its answers are graded."""

    about: str = ""
    """A sentence for the reader of the result."""
    kind: SuiteKind = SuiteKind.answers
    """answers, or text_loss: rows with `text`."""
    prompts: str = ""
    """Rows, as data.train of a run has them; a path beside the suite's file."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns of your own by the standard ones, as data.columns."""
    reward: RewardConfig = field(default_factory=lambda: RewardConfig(clip=0.0))
    """What grades an answer: rules, functions, servers, judges, a reward model, as in a run."""
    right_at: float | None = None
    """Score from which an answer counts as right: the suite's figure is a share. null: the mean score."""
    low: float | None = None
    """Lowest possible score, where it is known; with `high` it bounds what answers not seen may score."""
    high: float | None = None
    """Highest possible score."""
    samples: int = 1
    """Answers drawn for each prompt."""
    temperature: float = 0.0
    """0: the likeliest token."""
    max_new_tokens: int = 256
    """Longest answer, tokens."""
    system_prompt: str = ""
    """Put before prompts that have no system message."""
    harness: HarnessConfig = field(default_factory=HarnessConfig)
    """Tasks of lm-evaluation-harness instead of rows and grading of your own."""


@dataclass(kw_only=True)
class ConditionConfig:
    """What a gate asks of one suite."""

    suite: str = ""
    """A shipped suite's name, or a file beside the policy."""
    must: Demand = Demand.not_worse
    """not_worse or better (than the current model), or at_least (a value)."""
    by: float = 0.0
    """not_worse: the loss that is accepted; better: the gain that is asked for. In the suite's own unit."""
    value: float | None = None
    """at_least: the figure."""


@dataclass(kw_only=True)
class AuditConditionConfig:
    """What a gate asks of a reward model, of the audit that `raylign audit` wrote."""

    audit: str = ""
    """Its audit.json, a path beside the policy; in a loop's policy "{NAME}": the night's audit of that training."""
    agreement: float = 0.5
    """Share of people's choices that it must agree with, at least."""
    may_pay_for: list[str] = field(default_factory=list)
    """Changes by rule (as the audit names them) that it may pay for, or not mind; it must pay for no other."""
    calibration_error: float | None = None
    """Most that its margins, read as odds, may be wrong by on average."""


@dataclass(kw_only=True)
class GateConfig:
    """When a model may replace another."""

    conditions: list[ConditionConfig] = field(default_factory=list)
    """All of them must hold."""
    audits: list[AuditConditionConfig] = field(default_factory=list)
    """Of reward models, that the candidate learned from say. All must hold, too."""
    confidence: float = 0.95
    """One-sided, of each statement."""


def read_suite(path: Path) -> SuiteConfig:
    """Raises ConfigError with every problem of the file."""
    config = read_typed(path, SuiteConfig)
    problems = _suite_problems(config)
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return config


def read_gate(path: Path) -> GateConfig:
    """Raises ConfigError with every problem of the file."""
    config = read_typed(path, GateConfig)
    problems = list(_gate_problems(config))
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return config


def named_audit(audit: str) -> str | None:
    """NAME of "{NAME}", None for a path."""
    found = _BRACED.fullmatch(audit)
    return found[1] if found else None


def _suite_problems(config: SuiteConfig) -> list[str]:
    if config.harness != HarnessConfig():
        return list(_harness_problems(config))
    reward = config.reward
    graded = bool(reward.model or reward.rules or reward.functions or reward.remote or reward.judges or reward.code)
    checks = [
        (not config.prompts, "prompts: it is empty; name the file with the suite's rows."),
        (config.kind is SuiteKind.answers and not graded, "reward: nothing grades the answers; give rules, functions, "
         "a server, a judge or a model, as in a run."),
        (config.kind is SuiteKind.text_loss and graded, "reward: kind text_loss is not graded; leave it out."),
        (config.kind is SuiteKind.text_loss and config.right_at is not None, "right_at: kind text_loss has no right "
         "answers; leave it out."),
        (config.samples < 1, f"samples={config.samples}: give 1 or more."),
        (config.samples > 1 and config.temperature == 0, f"samples={config.samples} at temperature=0: every answer is "
         "the same; give a temperature, or 1 sample."),
        (config.temperature < 0, f"temperature={config.temperature:g}: give 0 or more."),
        (config.max_new_tokens < 1, f"max_new_tokens={config.max_new_tokens}: give 1 or more."),
        ((config.low is None) != (config.high is None), "low and high: give both, or neither."),
        (config.low is not None and config.high is not None and config.low >= config.high,
         f"low={config.low} is not below high={config.high}."),
        (reward.normalize, "reward.normalize: a grade must not depend on earlier answers; leave it out."),
    ]  # fmt: skip
    return [problem for wrong, problem in checks if wrong]


def _harness_problems(config: SuiteConfig) -> Iterator[str]:
    given, usual = config.harness, SuiteConfig()
    if not given.tasks:
        yield "harness.tasks: there are none; name tasks as `lm_eval ls tasks` lists them."
    if given.limit < 0:
        yield f"harness.limit={given.limit}: give 1 or more, or 0 for all rows."
    if given.num_fewshot is not None and given.num_fewshot < 0:
        yield f"harness.num_fewshot={given.num_fewshot}: give 0 or more, or null for what the task says."
    own = [name for name in _OF_ROWS if getattr(config, name) != getattr(usual, name)]
    if own:
        yield f"{', '.join(own)}: tasks of the harness bring their rows, sampling and grading; leave it out."
    if (config.low is None) != (config.high is None):
        yield "low and high: give both, or neither."


def _gate_problems(config: GateConfig):  # type: ignore[no-untyped-def]
    if not config.conditions and not config.audits:
        yield "conditions: there are none; a gate that asks for nothing lets everything pass."
    if not 0.5 < config.confidence < 1:
        yield f"confidence={config.confidence:g}: give a number between 0.5 and 1, as 0.95."
    for number, condition in enumerate(config.conditions):
        key = f"conditions[{number}]"
        if not condition.suite:
            yield f"{key}.suite: it is empty; name a suite."
        if condition.must is Demand.at_least and condition.value is None:
            yield f"{key}.value: must=at_least needs the figure that is asked for."
        if condition.must is not Demand.at_least and condition.value is not None:
            yield f"{key}.value: it belongs to must=at_least; with {condition.must.value} use `by`."
        if condition.by < 0 or not math.isfinite(condition.by):
            yield f"{key}.by={condition.by:g}: give 0 or more."
    yield from _audit_problems(config)
    named = [(c.suite, c.must) for c in config.conditions]
    yield from (f"conditions: {s} is asked {m.value} twice." for s, m in set(named) if named.count((s, m)) > 1)


def _audit_problems(config: GateConfig):  # type: ignore[no-untyped-def]
    for number, audit in enumerate(config.audits):
        key = f"audits[{number}]"
        if not audit.audit:
            yield f"{key}.audit: it is empty; name the audit.json of a reward model."
        if not 0.5 <= audit.agreement < 1:
            yield f"{key}.agreement={audit.agreement:g}: give a share from 0.5, which is chance, to below 1."
        if audit.calibration_error is not None and not 0 < audit.calibration_error < 1:
            yield f"{key}.calibration_error={audit.calibration_error:g}: give a share between 0 and 1."
