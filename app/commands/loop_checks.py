"""What `raylign loop` refuses before a night begins."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from raylign.app.commands.loop_training import composed_training
from raylign.app.commands.serve import causal_export
from raylign.conf.errors import ConfigError, UserError
from raylign.conf.loop import BUILD, CURRENT, Kind, LoopConfig, TrainingConfig
from raylign.conf.schema import RunConfig
from raylign.conf.suites import named_audit, read_gate
from raylign.evals.registry import Registry
from raylign.evals.suites import is_suite, open_suite
from raylign.feedback.overrides import parse_settings
from raylign.trainer.algorithms import algorithm_of
from raylign.trainer.algorithms.base import ModelKind, Role

if TYPE_CHECKING:
    from raylign.trainer.algorithms.base import OfflineAlgorithm


def check(config: LoopConfig, folder: Path) -> None:
    """Raises ConfigError with everything that can be seen before a night begins. `folder`: where nights are kept."""
    problems = [f"logs: {log}: there is no such file." for log in config.logs if not Path(log).expanduser().exists()]
    problems += [
        f"audit: pairs: {file}: there is no such file."
        for one in config.audit
        for file in one.pairs
        if not Path(file).expanduser().exists()
    ]
    looked_at: list[Callable[[], object]] = [
        partial(parse_settings, tuple(config.build)),
        partial(causal_export, config.start, folder / "runs"),
        partial(Registry(Path(config.registry).expanduser()).current, config.alias),
        *[partial(open_suite, name) for name in config.evaluate],
        *([partial(_check_gate, config)] if config.gate else []),
        partial(_check_compare, config),
    ]
    names = {BUILD: folder / BUILD, CURRENT: folder / CURRENT}
    for training in config.train:
        looked_at.append(partial(_check_training, training, dict(names), folder, config))
        names[training.name] = folder / training.name
    for look in looked_at:
        try:
            look()
        except UserError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _check_training(training: TrainingConfig, names: dict[str, Path], folder: Path, config: LoopConfig) -> None:
    data = () if training.kind is Kind.none else (f"data.train={folder / 'rows.jsonl'}",)
    run = composed_training(training, names, data, "x", folder / "runs", elsewhere=True).config
    name, scores = training.name, _makes_reward_model(run)
    judging = [("audit", one.model) for one in config.audit] + [("compare.reward_model", config.compare.reward_model)]
    problems = [
        f"{key}: {name} trains {run.algorithm.name}, which makes no reward model."
        for key, model in judging
        if model == name and not scores
    ]
    if scores and name in config.compare.models:
        problems.append(f"compare.models: {name} trains a reward model, which writes no answers.")
    if problems:
        raise ConfigError(problems)


def _makes_reward_model(run: RunConfig) -> bool:
    algorithm = algorithm_of(run.algorithm)
    return Role.ROLLOUT not in algorithm.roles and cast("OfflineAlgorithm", algorithm).needs.model is ModelKind.SCALAR


def _check_gate(config: LoopConfig) -> None:
    path = Path(config.gate)
    policy = read_gate(path)
    for one in policy.conditions:
        open_suite(one.suite, path.parent)
    audited = [one.model for one in config.audit]
    there = ", ".join(f'"{{{name}}}"' for name in audited)
    for audit in policy.audits:
        name = named_audit(audit.audit)
        if name is not None and name not in audited:
            raise ConfigError(
                f"{path}: audits: {audit.audit}: the loop makes no such audit; "
                + (f"there are {there}." if there else f"add audit: [{{model: {name}}}] to the loop.")
            )


def _check_compare(config: LoopConfig) -> None:
    given = config.compare
    if not given.prompts:
        return
    if is_suite(given.prompts):
        open_suite(given.prompts)
        if given.rules or given.reward_model:
            raise ConfigError(
                f"compare.prompts: {given.prompts}: a suite says how it is graded; leave rules and reward_model out."
            )
    elif not Path(given.prompts).expanduser().exists():
        raise ConfigError(f"compare.prompts: {given.prompts}: there is no such file.")
    elif not given.rules and not given.reward_model:
        raise ConfigError("compare: nothing says which answer is better; give rules or reward_model.")
