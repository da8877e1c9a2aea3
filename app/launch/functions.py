"""The reward functions of a run's settings, read where the run is started and sent along from there."""

from __future__ import annotations

from pathlib import Path

from raylign.app.launch.components import function_name
from raylign.conf.errors import ConfigError
from raylign.conf.schema import RewardConfig
from raylign.reward.functions import FunctionError, FunctionSource, read_source, sent_files


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
    return sources, problems


def function_files(config: RewardConfig) -> dict[str, Path]:
    """Every file that goes along, by key, for the manifest."""
    return {
        f"reward.functions.{function_name(given)}/{file.name}": file
        for given in config.functions
        for file in sent_files(given.path)
    }
