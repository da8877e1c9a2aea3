"""The reward functions of a run's settings, read where the run is started and sent along from there."""

from __future__ import annotations

from raylign.conf.errors import ConfigError
from raylign.conf.schema import RewardConfig
from raylign.reward.functions import FunctionError, FunctionSource, read_source
from raylign.reward.rules import component_names
from raylign.reward.scorer import MODEL_COMPONENT


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
    taken = {*component_names([rule.rule for rule in config.rules]), *([MODEL_COMPONENT] if config.model else [])}
    for given in config.functions:
        try:
            source = read_source(given.path, name=given.name, style=given.style.value)
        except FunctionError as error:
            problems.append(f"reward.functions: {error}.")
            continue
        if source.name in taken:
            problems.append(
                f"reward.functions: {given.path} is the second component called {source.name!r}; give it a name, as in "
                f"{{path: {given.path}, name: {source.name}_2}}."
            )
        taken.add(source.name)
        sources.append(source)
    return sources, problems
