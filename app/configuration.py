"""Configuration with the algorithms of this product: what the entry points and the tests compose a run with."""

from __future__ import annotations

from collections.abc import Sequence

from raylign.app.launch.demand import reference_is_shared, wanted_roles
from raylign.conf import compose as composition
from raylign.conf.checks import Needs
from raylign.conf.compose import Catalog, Composed
from raylign.conf.own_code import TooLong, within
from raylign.conf.schema import AlgorithmConfig, RunConfig
from raylign.reward.rules import rule_problems
from raylign.trainer.algorithms import ALGORITHMS, algorithm_of
from raylign.trainer.algorithms.base import Role
from raylign.trainer.algorithms.own import loaded, own_algorithm
from raylign.trainer.algorithms.trial import trial


def compose(overrides: Sequence[str], *, elsewhere: bool = False) -> Composed:
    """The run that `key=value` arguments describe; `elsewhere`: it is to start on another machine.

    Raises ConfigError with every problem found.
    """
    return composition.compose(overrides, catalog(), elsewhere=elsewhere)


TRIAL_TIMEOUT_S = 120.0
"""For what takes milliseconds."""


def from_resolved(resolved_yaml: str, overrides: Sequence[str] = ()) -> Composed:
    """The run that a run folder's `resolved.yaml` describes. Raises ConfigError."""
    return composition.from_resolved(resolved_yaml, catalog(), overrides)


def catalog() -> Catalog:
    """All algorithms with their settings and the roles they need."""
    return Catalog(
        {name: config for name, (config, _) in ALGORITHMS.items()}, needs, rule_problems, own_settings, own_problems
    )


def own_settings(named: str) -> type[AlgorithmConfig]:
    """The class of settings of a user's own algorithm. Raises OwnCodeError."""
    return own_algorithm(named)[0]


def own_problems(config: AlgorithmConfig) -> list[str]:
    """What a user's own algorithm does wrong on made-up sequences."""
    try:
        return within(TRIAL_TIMEOUT_S, lambda: trial(config, loaded(config.name, type(config))))
    except TooLong:
        return [f"its trial on four sequences of random numbers was not done within {TRIAL_TIMEOUT_S:g} s; it hangs"]


def needs(config: RunConfig) -> Needs:
    """The parts of the cluster a run asks for. Offline algorithms train the policy alone."""
    started = roles(config)
    shared = reference_is_shared(config, started)
    return Needs(
        rollout=Role.ROLLOUT in started,
        critic=Role.CRITIC in started,
        reference=Role.REFERENCE in started and not shared,
        reward=Role.REWARD in started,
        shared_reference=shared,
    )


def roles(config: RunConfig) -> frozenset[Role]:
    """Every role the run starts."""
    return wanted_roles(config, algorithm_of(config.algorithm).roles)
