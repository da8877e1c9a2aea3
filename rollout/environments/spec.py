"""Which environments a run's workers play, as it travels to them; made where the run starts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from raylign.conf.schema import EnvironmentConfig
from raylign.reward.function_messages import FunctionCode, FunctionError
from raylign.reward.functions import named_code
from raylign.rollout.environments.address import is_class, served_address
from raylign.rollout.environments.catalog import shipped
from raylign.rollout.environments.interfaces import EnvironmentRefused, Environments
from raylign.rollout.environments.local import LocalEnvironments
from raylign.rollout.environments.process import OwnEnvironments, ProcessLimits
from raylign.rollout.environments.served import environments_at, seen
from raylign.rollout.environments.served_values import Form
from raylign.rollout.environments.spread import Spread


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """The settings, and the files of a class of the user's."""

    config: EnvironmentConfig
    code: FunctionCode | None  # None: a shipped one
    chat_template: str = ""  # in place of the model's own
    today: date | None = None  # what templates print
    form: Form | None = None  # of a served one, as it was seen where the run starts


def environment_spec(config: EnvironmentConfig, chat_template: str = "", today: date | None = None) -> EnvironmentSpec:
    """Raises EnvironmentRefused when there is no such environment, or no such file."""
    if not is_class(config.name):
        if served_address(config.name) is None:
            shipped(config.name)
        return EnvironmentSpec(config, None, chat_template, today)
    if "://" in config.name:
        raise EnvironmentRefused("no environment has this name; write a server as openenv:URL or nemo_gym:URL")
    try:
        return EnvironmentSpec(config, named_code(config.name, "class"), chat_template, today)
    except FunctionError as error:
        raise EnvironmentRefused(str(error)) from error


def started(spec: EnvironmentSpec) -> Environments:
    """Ready to be played: a class of the user's in a process of its own, a served one over the network, a shipped one
    here. Raises EnvironmentRefused."""
    config = spec.config
    if address := served_address(config.name):
        return environments_at(config, address, spec.form or seen(config, address, sessions=1))
    if spec.code is None:
        return LocalEnvironments(shipped(config.name), config.arguments, timeout_s=config.timeout_s)
    limits = ProcessLimits(config.max_restarts, config.memory_gb)
    own = [
        OwnEnvironments(
            spec.code,
            config.arguments,
            timeout_s=config.timeout_s,
            start_timeout_s=config.start_timeout_s,
            limits=limits,
        )
        for _ in range(config.processes)
    ]
    own[0].load()
    return Spread(own)
