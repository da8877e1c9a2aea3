"""What `guard.*` does about a sign: only what is asked for, after the step is written; what it cannot do is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from raylign.app.configuration import compose
from raylign.app.launch.guard import GoBack, Guard, guard_rows
from raylign.conf.errors import ConfigError
from raylign.conf.schema import GuardAction, GuardConfig
from raylign.records.alerts import Alert, AlertKind

SIGN = Alert(AlertKind.KL_RUNAWAY, 7, "KL is 99")


class Steps:
    """A sink in which a step raises an alert, as the tracker does while it writes it."""

    def __init__(self) -> None:
        self.guard: Guard | None = None
        self.written: list[int] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.written.append(step)
        if step == SIGN.step and self.guard is not None:
            self.guard.sign(SIGN)


def guarded(action: GuardAction) -> tuple[Guard, Steps, list[str]]:
    steps, told = Steps(), list[str]()
    steps.guard = Guard(steps, GuardConfig(kl=action), told.append)
    return steps.guard, steps, told


def test_a_warning_changes_nothing() -> None:
    guard, steps, told = guarded(GuardAction.warn)
    for step in (6, 7, 8):
        guard.log(step, {})
    assert (steps.written, guard.stopped_by, told) == ([6, 7, 8], "", [])


def test_a_stop_is_asked_for_once_and_said() -> None:
    guard, _, told = guarded(GuardAction.stop)
    guard.log(6, {})
    assert guard.stopped_by == ""
    guard.log(7, {})
    guard.sign(SIGN)
    assert guard.stopped_by == "guard.kl=stop"
    assert told == ["guard.kl=stop: the run saves and ends after step 7"]


def test_a_rollback_ends_the_loop_after_the_step_is_written() -> None:
    guard, steps, _ = guarded(GuardAction.rollback)
    guard.log(6, {})
    with pytest.raises(GoBack) as caught:
        guard.log(7, {})
    assert (steps.written, caught.value.alert, guard.stopped_by) == ([6, 7], SIGN, "")


def test_signs_that_no_rule_governs_are_only_said() -> None:
    every = GuardConfig(**dict.fromkeys(("kl", "entropy", "length", "repetition", "gamed", "reward"), GuardAction.stop))
    guard = Guard(Steps(), every, lambda said: None)
    guard.sign(Alert(AlertKind.DISK, 3, "full"))
    assert guard.stopped_by == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["algorithm=dpo", "guard.kl=stop"], "guard.kl=stop: an offline run samples nothing"),
        (["algorithm=ppo", "guard.kl=rollback", "checkpoint.every=0"], "reaches back 0"),
        (["algorithm=ppo", "guard.kl=rollback", "checkpoint.every=2", "checkpoint.keep=3"], "reaches back 4"),
        (["algorithm=ppo", "guard.entropy_low=0"], "guard.entropy_low=0: must be above 0"),
        (["algorithm=ppo", "guard.length_factor=1"], "guard.length_factor=1: must be above 1"),
        (["algorithm=ppo", "guard.kl=halt"], "guard.kl"),
    ],
)
def test_what_the_guard_cannot_do_is_refused(given: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(given)
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_plan_shows_the_rules_that_can_hold() -> None:
    rows = guard_rows(GuardConfig(kl=GuardAction.rollback, kl_limit=12), online=True)
    assert ("KL runs away", "guard.kl=rollback", "kl_limit=12") in rows and len(rows) == 6
    assert [row[0] for row in guard_rows(GuardConfig(), online=False)] == ["the entropy leaves its range"]
