"""The reward functions of a run's settings, read where the run is started and sent along from there."""

from __future__ import annotations

from pathlib import Path

from raylign.conf.errors import ConfigError
from raylign.conf.schema import RewardConfig, RewardFunctionConfig, RunConfig
from raylign.reward.functions import FunctionError, FunctionSource, read_source, sent_files
from raylign.reward.rules import component_names
from raylign.reward.scorer import MODEL_COMPONENT
from raylign.reward.sources import RewardSources


def reward_sources(config: RunConfig) -> RewardSources:
    """What the scorers of a run need. Raises ConfigError with the problems of all."""
    return RewardSources(functions=reward_functions(config.reward), policy_model=config.policy.model)


def reward_functions(config: RewardConfig) -> tuple[FunctionSource, ...]:
    """One source for each of `reward.functions`. Raises ConfigError with the problems of all."""
    sources, problems = read_functions(config)
    if problems:
        raise ConfigError(problems)
    return tuple(sources)


def read_functions(config: RewardConfig) -> tuple[list[FunctionSource], list[str]]:
    """The sources that can be used, and a sentence for each that cannot."""
    sources: list[FunctionSource] = []
    problems: list[str] = []
    for given in config.functions:
        try:
            sources.append(
                read_source(given.path, name=given.name, style=given.style.value, start_timeout_s=given.start_timeout_s)
            )
        except FunctionError as error:
            problems.append(f"reward.functions: {error}.")
    return sources, [*problems, *_repeated_names(config)]


def components(config: RewardConfig) -> list[str]:
    """The name of every part of the reward, in metrics."""
    known = component_names([rule.rule for rule in config.rules])
    known += [MODEL_COMPONENT] if config.model else []
    return [*known, *(_name(given) for given in config.functions)]


def function_files(config: RewardConfig) -> dict[str, Path]:
    """Every file that goes along, by key, for the manifest."""
    return {
        f"reward.functions.{_name(given)}/{file.name}": file
        for given in config.functions
        for file in sent_files(given.path)
    }


def _name(given: RewardFunctionConfig) -> str:
    return given.name or given.path.rpartition(":")[2]


def _repeated_names(config: RewardConfig) -> list[str]:
    taken = {*component_names([rule.rule for rule in config.rules]), *([MODEL_COMPONENT] if config.model else [])}
    problems = []
    for given in config.functions:
        name = _name(given)
        if name in taken:
            problems.append(
                f"reward.functions: {given.path} is the second component called {name!r}; give it a name, as in "
                f"{{path: {given.path}, name: {name}_2}}."
            )
        taken.add(name)
    return problems
