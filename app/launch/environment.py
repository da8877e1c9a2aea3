"""The environment of a run's settings: looked at where the run starts, before Ray does, and sent along from there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from raylign.app.launch.components import components
from raylign.app.launch.remotes import served_problems
from raylign.conf.errors import ConfigError, ModelLoadError
from raylign.conf.schema import EnvironmentConfig, RunConfig
from raylign.data.chat_template import read_chat_template
from raylign.data.row_fields import RowError
from raylign.data.tokenize import load_tokenizer
from raylign.data.turns import TurnWriter
from raylign.reward.function_messages import FunctionCode
from raylign.reward.functions import sent_files
from raylign.reward.scorer import ENVIRONMENT_COMPONENT
from raylign.rollout.environments.address import is_class, served_address
from raylign.rollout.environments.interfaces import EnvironmentRefused
from raylign.rollout.environments.served import seen
from raylign.rollout.environments.served_values import Form
from raylign.rollout.environments.spec import EnvironmentSpec, environment_spec, started
from raylign.rollout.tool_calls import TAGGED

Tools = tuple[Mapping[str, Any], ...]


def run_environment(config: RunConfig, template: str, today: date | None) -> EnvironmentSpec | None:
    """What workers are sent; None without an environment. Raises ConfigError."""
    if not config.environment.name:
        return None
    try:
        return replace(environment_spec(config.environment, template, today), form=_form(config))
    except EnvironmentRefused as error:
        raise ConfigError([_of_name(config.environment, error)]) from error


def environment_tools(config: RunConfig) -> Tools:
    """Schemas of its tools; () without an environment, or one that is talked to. Raises ConfigError."""
    if not config.environment.name:
        return ()
    try:
        spec = environment_spec(config.environment)
        if form := _form(config):
            return form.tools
        return _tools(spec.code, json.dumps([config.environment.name, dict(config.environment.arguments)]), config)
    except EnvironmentRefused as error:
        raise ConfigError([_of_name(config.environment, error)]) from error


def environment_problems(config: RunConfig) -> Iterator[str]:
    """A sentence for each thing that keeps episodes from being played."""
    if not config.environment.name:
        return
    if ENVIRONMENT_COMPONENT in components(config.reward):
        yield (
            f"reward: one of its parts is called {ENVIRONMENT_COMPONENT}, as the part of environment="
            f"{config.environment.name} is; give it another name."
        )
    if problems := [*served_problems(config.environment)]:
        yield from problems
        return
    try:
        tools = environment_tools(config)
        tokenizer = load_tokenizer(config.policy.model, read_chat_template(config.data.chat_template))
    except ConfigError as error:  # DataError is one
        yield from error.problems
        return
    except ModelLoadError:
        return  # refused where the model is read
    try:
        TurnWriter(tokenizer, tools)
    except RowError as error:
        yield f"environment={config.environment.name} with policy.model={config.policy.model}: {error}."
        return
    parser = config.environment.tool_parser
    if parser != TAGGED:
        from raylign.rollout.playing import call_reader

        try:
            call_reader(parser, tokenizer, tools)
        except EnvironmentRefused as error:
            yield f"environment.tool_parser={parser}: {error}."


def environment_rows(config: RunConfig) -> list[tuple[str, str]]:
    """What a plan says of it; empty without one. Raises ConfigError."""
    given = config.environment
    if not given.name:
        return []
    names = [str(tool["function"]["name"]) for tool in environment_tools(config)]
    most = (
        f"at most {given.max_turn_tokens} tokens each" if given.max_turn_tokens else "as long as the episode has room"
    )
    return [
        ("environment", given.name),
        ("runs", _where(given)),
        ("tools", ", ".join(names) or "none: what the model writes is its action"),
        ("turns", f"at most {given.max_turns}, {most}"),
        ("calls read by", given.tool_parser if names else "no parser: there are no tools"),
        ("deadline of a call", f"{given.timeout_s:g} s"),
        ("weight of its reward", f"{given.reward_weight:g}"),
    ]


def _where(given: EnvironmentConfig) -> str:
    if served_address(given.name):
        return "on its server"
    if not is_class(given.name):
        return "in each engine's own process"
    each = f"{given.cpus_per_process:g} CPUs" + (f" and at most {given.memory_gb:g} GB" if given.memory_gb else "")
    return f"beside each engine, in {given.processes} process{'es' if given.processes > 1 else ''} of {each}"


def environment_files(environment: EnvironmentConfig) -> dict[str, Path]:
    """The files of a class of the user's, and what its arguments name, by key, for the manifest."""
    given = {f"environment.arguments.{name}": Path(value) for name, value in environment.arguments.items()}
    code = sent_files(environment.name) if is_class(environment.name) else []
    return {
        **{f"environment/{file.name}": file for file in code},
        **{key: path for key, path in given.items() if path.parts and path.exists()},
    }


def _of_name(environment: EnvironmentConfig, error: EnvironmentRefused) -> str:
    return f"environment={environment.name}: {error}."


_SEEN: dict[str, Form] = {}


def _form(config: RunConfig) -> Form | None:
    """Of a served one, asked once. An OpenEnv server needs room for all samples of a prompt, which begin together."""
    given = config.environment
    address = served_address(given.name)
    if address is None:
        return None
    key = json.dumps([given.name, dict(given.arguments), config.rollout.samples_per_prompt])
    if key not in _SEEN:
        _SEEN[key] = seen(given, address, sessions=config.rollout.samples_per_prompt)
    return _SEEN[key]


_KNOWN: dict[tuple[FunctionCode | None, str], Tools] = {}
"""A start asks several times; a file that changes meanwhile is another key."""


def _tools(code: FunctionCode | None, named: str, config: RunConfig) -> Tools:
    if (code, named) not in _KNOWN:
        environments = started(EnvironmentSpec(config.environment, code))
        _KNOWN[code, named] = tuple(environments.tools)
        asyncio.run(environments.stop())
    return _KNOWN[code, named]
