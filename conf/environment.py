"""What cannot work of `environment.*`, by the settings alone. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from raylign.conf.own_code import is_own
from raylign.conf.problems import Problem
from raylign.conf.ranges import leaves
from raylign.conf.schema import EnvironmentConfig, RunConfig


def refuse_environment(config: RunConfig) -> Iterator[Problem]:
    """Of an algorithm that samples nothing."""
    if config.environment.name:
        yield Problem(
            ("environment.name", "algorithm.name"),
            f"environment={config.environment.name}: algorithm={config.algorithm.name} samples no answers, so nothing "
            "would act in it; leave it out, or take an online algorithm such as grpo.",
        )


def check_environment(config: RunConfig) -> Iterator[Problem]:
    """Whether it exists and can be used is looked at where its code is (app/launch/environment.py)."""
    environment, rollout = config.environment, config.rollout
    if not environment.name:
        for name, default in leaves(EnvironmentConfig()):
            if (value := getattr(environment, name)) != default:
                yield Problem(
                    (f"environment.{name}", "environment.name"),
                    f"environment.{name}={value}: there is no environment; set environment=calculator or another, or "
                    "leave this out.",
                )
        return
    if not is_own(environment.name) or "://" in environment.name:
        for name in ("processes", "cpus_per_process", "memory_gb", "max_restarts"):
            if (value := getattr(environment, name)) != getattr(EnvironmentConfig(), name):
                yield Problem(
                    (f"environment.{name}", "environment.name"),
                    f"environment.{name}={value:g}: environment={environment.name} has no process of its own; leave it "
                    "out, or give a class as FILE.py:CLASS.",
                )
    if environment.max_turn_tokens > rollout.max_new_tokens:
        yield Problem(
            ("environment.max_turn_tokens", "rollout.max_new_tokens"),
            f"environment.max_turn_tokens={environment.max_turn_tokens} is more than rollout.max_new_tokens="
            f"{rollout.max_new_tokens}, which a whole episode may have; lower one, or raise the other.",
        )
    if environment.timeout_s >= rollout.timeout_s:
        yield Problem(
            ("environment.timeout_s", "rollout.timeout_s"),
            f"environment.timeout_s={environment.timeout_s:g} is not below rollout.timeout_s={rollout.timeout_s:g}: an "
            "environment that hangs would end the step; lower it.",
        )
