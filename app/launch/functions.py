"""The reward functions of a run's settings, read where the run is started and sent along from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from raylign.app.launch.components import function_name
from raylign.conf.errors import ConfigError
from raylign.conf.schema import RewardConfig
from raylign.data.types import Prompt
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
    for number, given in enumerate(config.functions):
        try:
            sources.append(
                read_source(given.path, name=given.name, style=given.style.value, start_timeout_s=given.start_timeout_s)
            )
        except FunctionError as error:
            problems.append(f"reward.functions[{number}].path={given.path}: {error}.")
    return sources, problems


def refuse_missing_columns(config: RewardConfig, prompts: Sequence[Prompt]) -> None:
    """Raises ConfigError for a function that asks by name for a column that no row has: every call would fail."""
    wanted = [(given.path, source) for given, source in zip(config.functions, reward_functions(config), strict=True)]
    if not any(source.columns for _, source in wanted):
        return
    there = {name for prompt in prompts if prompt.columns for name in json.loads(prompt.columns)}
    if problems := [
        f"reward.functions[{number}].path={path}: it takes {name!r}, and data.train has no such column (it has "
        f"{', '.join(sorted(there)) or 'none'} beside prompt and answer); give it a default, or name the column in "
        "data.columns."
        for number, (path, source) in enumerate(wanted)
        for name in source.columns
        if name not in there
    ]:
        raise ConfigError(problems)


def function_files(config: RewardConfig) -> dict[str, Path]:
    """Every file that goes along, by key, for the manifest."""
    return {
        f"reward.functions.{function_name(given)}/{file.name}": file
        for given in config.functions
        for file in sent_files(given.path)
    }
