"""Environments that somebody serves: looked at where the run starts, and played from each engine's process."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from raylign.conf.schema import EnvironmentConfig
from raylign.reward.http_json import Endpoint, EndpointError
from raylign.rollout.environments import nemo_gym, openenv, openenv_look
from raylign.rollout.environments.address import OPENENV, Address
from raylign.rollout.environments.interfaces import EnvironmentRefused, Environments
from raylign.rollout.environments.served_values import Form

LOOK_S = 10.0
"""Deadline of looking at a server."""


def seen(config: EnvironmentConfig, address: Address, *, sessions: int) -> Form:
    """What the server offers. `sessions`: how many it has to have room for at once, where it counts them.

    Raises EnvironmentRefused when it is not there, does not speak the protocol or has no room.
    """
    endpoint, within = _endpoint(config, address), min(LOOK_S, config.timeout_s)
    if address.protocol == OPENENV:
        asked = openenv_look.look(endpoint, config.arguments, sessions=sessions, timeout_s=within)
    else:
        asked = nemo_gym.look(endpoint, config.arguments, timeout_s=within)
    with ThreadPoolExecutor(1) as thread:  # the caller may have a loop of its own
        return thread.submit(asyncio.run, asked).result()


def environments_at(config: EnvironmentConfig, address: Address, form: Form) -> Environments:
    """Ready to be played. Raises EnvironmentRefused where this machine has no token."""
    kind = openenv.OpenEnvironments if address.protocol == OPENENV else nemo_gym.NemoGymEnvironments
    return kind(_endpoint(config, address), form, timeout_s=config.timeout_s)


def _endpoint(config: EnvironmentConfig, address: Address) -> Endpoint:
    try:
        return Endpoint.from_environ(address.url, config.token_env, config.timeout_s)
    except EndpointError as error:
        raise EnvironmentRefused(str(error)) from error
