"""loop.yaml: what `raylign loop` does with a growing log, night after night, as typed settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from raylign.conf.errors import ConfigError
from raylign.conf.typed_file import read_typed

BUILD, CURRENT = "build", "current"
"""Names that settings of a training may use in braces, beside those of earlier trainings."""

MOST_COMPARED = 8
"""Models side by side on a page."""

OF_THE_LOOP = ("name", "run_root", "checkpoint.resume")
"""Settings of a training that the loop gives itself."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_BRACES = re.compile(r"\{([a-z][a-z0-9-]*)\}")


class Kind(Enum):
    """Which rows of the build a training learns from."""

    none = "none"  # its settings name data.train
    sft = "sft"
    pairs = "pairs"
    kto = "kto"
    teacher = "teacher"


class Rows(Enum):
    """How much of them."""

    all = "all"
    new = "new"  # what the build has now and did not have when the current model was trained


@dataclass(kw_only=True)
class TrainingConfig:
    """One training of a night."""

    name: str = ""
    """Names its run, and in braces its model in later trainings: reward.model={reward-model}."""
    kind: Kind = Kind.none
    """Rows of the build that become data.train and data.eval: sft, pairs, kto or teacher; none: the settings name
    the data."""
    rows: Rows = Rows.all
    """all, or new: continue from {current} on rows that it has not been trained on."""
    most: int = 0
    """At most so many rows, drawn by their ids, and a fifth as many held-out ones; 0: no limit. Not with rows=new."""
    settings: list[str] = field(default_factory=list)
    """As `raylign train` takes them; {build}, {current} and {NAME of an earlier training} stand for folders."""


@dataclass(kw_only=True)
class LoopAuditConfig:
    """One audit of a reward model that a training has made."""

    model: str = ""
    """The training's name; in the gate's policy `audit: "{NAME}"` stands for this audit."""
    pairs: list[str] = field(default_factory=list)
    """Files of judged pairs; empty: those that the night's build has held out."""
    agreement: float | None = None
    """Share of pairs on which two people agree, for the best that is possible."""
    most: int = 500
    """Pairs that are read at most."""


@dataclass(kw_only=True)
class LoopCompareConfig:
    """The page with the answers of several models side by side."""

    models: list[str] = field(default_factory=list)
    """Names of trainings, and current; empty: no page."""
    prompts: str = ""
    """Rows, a suite's yaml file or a shipped suite; empty: questions of the pairs that the build has held out."""
    most: int = 40
    """Questions of the build that are asked at most."""
    rules: list[str] = field(default_factory=list)
    """Rules by which an answer is better; not with a suite."""
    reward_model: str = ""
    """A training whose reward model says which answer is better; not with a suite."""


@dataclass(kw_only=True)
class LoopConfig:
    """A loop. Relative paths are of the folder of the file."""

    folder: str = "loop"
    """Where nights, runs and results are kept."""
    logs: list[str] = field(default_factory=list)
    """Log files, or folders of them."""
    format: str = ""
    """The logs' format, where it should not be guessed."""
    mapping: str = ""
    """A mapping file, as `raylign feedback build --mapping`."""
    companion: str = ""
    """The second file of formats that keep answers elsewhere."""
    build: list[str] = field(default_factory=list)
    """Settings of the build, as `raylign feedback build` takes them."""
    min_new_events: int = 1
    """Fewest new judgements that begin a night."""
    start: str = ""
    """The model that trainings start from, and are compared with, until the alias has one: a run or a model folder."""
    train: list[TrainingConfig] = field(default_factory=list)
    """In this order; the last one's model is the candidate."""
    evaluate: list[str] = field(default_factory=list)
    """Suites that the candidate and the current model are evaluated on."""
    audit: list[LoopAuditConfig] = field(default_factory=list)
    """Reward models of the night that are audited."""
    compare: LoopCompareConfig = field(default_factory=LoopCompareConfig)
    """Which models of the night are compared on a page, and how."""
    gate: str = ""
    """The gate's policy; empty: none is asked."""
    promote: bool = False
    """Point the alias at a candidate that passes the gate."""
    registry: str = "registry"
    """Where aliases are kept."""
    alias: str = "production"
    """The alias of the current model."""


def read_loop(path: Path) -> LoopConfig:
    """Raises ConfigError with every problem of the file."""
    config = read_typed(path, LoopConfig)
    problems = [*_problems(config), *_training_problems(config), *_audit_problems(config), *_compare_problems(config)]
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return config


def filled(settings: list[str], folders: Mapping[str, Path]) -> list[str]:
    """Settings with the folder in place of each name in braces; other braces (of mappings) stay."""
    return [_BRACES.sub(lambda m: str(folders[m[1]]) if m[1] in folders else m[0], one) for one in settings]


def uses(training: TrainingConfig, name: str) -> bool:
    """Whether a training's settings name it in braces."""
    return any(name in _BRACES.findall(one) for one in training.settings)


def _problems(config: LoopConfig) -> Iterator[str]:
    if not config.logs:
        yield "logs: there are none; name the files to read, or a folder of them."
    if not config.train:
        yield "train: there is none; give at least one training with its name and settings."
    if not config.start:
        yield "start: it is empty; name the model that the first night starts from."
    if config.min_new_events < 1:
        yield f"min_new_events={config.min_new_events}: give 1 or more."
    if config.promote and not config.gate:
        yield "promote: true needs a gate; name its policy with gate, or leave promote out."


def _audit_problems(config: LoopConfig) -> Iterator[str]:
    names = [one.name for one in config.train]
    for number, one in enumerate(config.audit):
        key = f"audit[{number}]"
        if one.model not in names:
            yield f"{key}.model={one.model!r}: no training has that name; there are {', '.join(names) or 'none'}."
        elif one.model in [other.model for other in config.audit[:number]]:
            yield f"{key}.model={one.model!r}: it is audited already; give one audit a model."
        if one.agreement is not None and not 0.5 < one.agreement <= 1:
            yield f"{key}.agreement={one.agreement:g}: two people agree on a share between 0.5 and 1."
        if one.most < 1:
            yield f"{key}.most={one.most}: give 1 or more."


def _compare_problems(config: LoopConfig) -> Iterator[str]:
    given, names = config.compare, [one.name for one in config.train]
    if not given.models:
        if given != LoopCompareConfig():
            yield f"compare.models: there are none; name 2 to {MOST_COMPARED} of {', '.join([CURRENT, *names])}."
        return
    if not 2 <= len(given.models) <= MOST_COMPARED:
        yield f"compare.models: {len(given.models)} given; name 2 to {MOST_COMPARED}."
    known = {"models": [CURRENT, *names], "reward_model": names}
    for key, name in [*(("models", name) for name in given.models), ("reward_model", given.reward_model)]:
        if name and name not in known[key]:
            yield f"compare.{key}: {name!r} is no training; there are {', '.join(known[key])}."
    for name in sorted({name for name in given.models if given.models.count(name) > 1}):
        yield f"compare.models: {name} is named twice."
    graded = bool(given.rules or given.reward_model)
    if not given.prompts and not graded:
        yield "compare: nothing says which answer is better; give rules, reward_model, or a suite with prompts."
    if given.most < 1:
        yield f"compare.most={given.most}: give 1 or more."


def _training_problems(config: LoopConfig) -> Iterator[str]:
    known = [BUILD, CURRENT]
    for number, one in enumerate(config.train):
        key = f"train[{number}]"
        if not _NAME.fullmatch(one.name) or one.name in known:
            yield (
                f"{key}.name={one.name!r}: give a name of 1 to 40 of a-z 0-9 - that is not taken "
                f"({', '.join(known)} are)."
            )
        taken = [*OF_THE_LOOP, *(["data.train"] if one.kind is not Kind.none else [])]
        for setting in one.settings:
            if setting.partition("=")[0].lstrip("+") in taken:
                yield f"{key}.settings: {setting}: the loop gives this setting itself; leave it out."
            for name in _BRACES.findall(setting):
                if name not in known:
                    yield f"{key}.settings: {{{name}}} stands for nothing here; there are {', '.join(known)}."
        if one.rows is Rows.new and (one.kind is Kind.none or not uses(one, CURRENT)):
            yield (
                f"{key}.rows=new: continues from the current model on new rows, so it needs a kind and a setting like "
                "policy.model={current}."
            )
        if one.most < 0 or (one.most and (one.kind is Kind.none or one.rows is Rows.new)):
            yield (
                f"{key}.most={one.most}: a limit of 1 or more goes with a kind and rows=all (what is left out of new "
                "rows would be taken for learned); leave it out."
            )
        known.append(one.name)
