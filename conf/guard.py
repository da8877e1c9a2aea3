"""What `guard.*` cannot ask of a run. Pure; yields all it sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from raylign.conf.problems import Problem
from raylign.conf.schema import GUARD_WINDOW, GuardAction, RunConfig


def check_guard(config: RunConfig, *, rollout: bool, reference: bool) -> Iterator[Problem]:
    """Rules of what the run does not measure, and a rollback without a checkpoint to go back to."""
    guard, checkpoint = config.guard, config.checkpoint
    acting = (GuardAction.stop, GuardAction.rollback)
    given = {field.name: value for field in fields(guard) if (value := getattr(guard, field.name)) in acting}
    for name, action in given.items():
        key = f"guard.{name}={action.value}"
        if not rollout and name != "entropy":
            yield Problem(
                (f"guard.{name}",), f"{key}: an offline run samples nothing, so it never holds; leave it out."
            )
        if name == "kl" and rollout and not reference:
            yield Problem((f"guard.{name}",), f"{key}: this run has no reference to measure a KL to; leave it out.")
        reach = (checkpoint.keep - 1) * checkpoint.every
        if action is GuardAction.rollback and not config.evaluation.best and reach < GUARD_WINDOW:
            yield Problem(
                (f"guard.{name}", "checkpoint.every", "checkpoint.keep"),
                f"{key}: a sign is seen {GUARD_WINDOW} steps late, and checkpoint.every={checkpoint.every} with "
                f"checkpoint.keep={checkpoint.keep} reaches back {reach}; (keep - 1) x every must be {GUARD_WINDOW}.",
            )
