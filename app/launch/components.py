"""The parts of a run's reward by their names in metrics. Reads settings only."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylign.conf.schema import RewardConfig, RewardFunctionConfig
from raylign.reward.http_json import shown as shown_url
from raylign.reward.rules import component_names
from raylign.reward.scorer import CALL_SHARE, MODEL_COMPONENT, SPREAD_COMPONENT

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FIGURES = {"mean", "std", "failed", "unreadable", "zero_variance_groups", "single_sample_groups"}
"""Names that metrics of the whole reward have."""


def components(config: RewardConfig) -> list[str]:
    """Every part's name."""
    return [*_own(config), *(name for _, _, name in _named(config))]


def name_problems(config: RewardConfig) -> Iterator[str]:
    """A sentence for each part whose name cannot be used, or is taken."""
    taken = set(_own(config))
    for key, shown, name in _named(config):
        if name in _FIGURES or not _NAME.fullmatch(name):
            yield f"{key}: {shown} cannot be called {name!r} in metrics; give it another name of A-Z a-z 0-9 . _ -."
        elif name in taken:
            yield f"{key}: {shown} is the second component called {name!r}; give it a name, as in name: {name}_2."
        taken.add(name)


def time_left(config: RewardConfig) -> Iterator[str]:
    """A sentence for each that may take longer than a replica has, which would then be taken for dead."""
    longest = config.timeout_s * CALL_SHARE
    for section in ("functions", "remote", "judges", "code"):
        for number, given in enumerate(getattr(config, section)):
            if given.timeout_s > longest:
                yield (
                    f"reward.{section}[{number}].timeout_s={given.timeout_s:g}: of reward.timeout_s="
                    f"{config.timeout_s:g} a batch may take {longest:g}; raise reward.timeout_s to "
                    f"{given.timeout_s / CALL_SHARE:.0f}, or lower this one."
                )


def function_name(given: RewardFunctionConfig) -> str:
    """Of a function: as given, else its own."""
    return given.name or given.path.rpartition(":")[2]


def _own(config: RewardConfig) -> list[str]:
    rules, spread = component_names([rule.rule for rule in config.rules]), bool(config.uncertainty_penalty)
    return [
        *rules,
        *([MODEL_COMPONENT] if config.model else []),
        *([SPREAD_COMPONENT] if config.model and spread else []),
    ]


def _named(config: RewardConfig) -> Iterator[tuple[str, str, str]]:
    """Key, what a person gave, and name."""
    for function in config.functions:
        yield "reward.functions", function.path, function_name(function)
    for remote in config.remote:
        yield "reward.remote", shown_url(remote.url), remote.name
    for judge in config.judges:
        yield "reward.judges", judge.model, judge.name
    for code in config.code:
        yield "reward.code", code.tests, code.name
