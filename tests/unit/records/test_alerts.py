"""Each alert with a planted series that must raise it and a quiet one that must not; told once, also over a resume."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from raylign.conf.schema import GuardAction, GuardConfig
from raylign.records.alert_watch import AlertWatch, read_alerts
from raylign.records.alerts import (
    GUARDED,
    Alert,
    AlertKind,
    Moment,
    StepRecord,
    action_of,
    best_step,
    find_alerts,
    step_record,
)
from raylign.records.metrics_log import MetricRow

GIB = 2**30


def healthy(steps: int = 60, seed: int = 0) -> list[StepRecord]:
    """A run that learns: noisy rising reward and truth, KL that grows into its range, steady lengths, rare failures."""
    noise = random.Random(seed)
    return [
        StepRecord(
            step=s,
            reward=0.2 + 0.5 * s / steps + noise.gauss(0, 0.05),
            gold=0.1 + 0.3 * s / steps + noise.gauss(0, 0.05),
            kl=6.0 * s / steps + noise.gauss(0, 0.3),
            response_length=80 + 20 * s / steps + noise.gauss(0, 6),
            failed=float(noise.random() < 0.1),
            samples=64.0,
            seconds=10 + noise.random(),
            entropy=1.6 - 0.9 * s / steps + noise.gauss(0, 0.05),
            repetition=max(0.0, 0.05 + 0.1 * s / steps + noise.gauss(0, 0.02)),
        )
        for s in range(1, steps + 1)
    ]


def changed(records: list[StepRecord], change: Callable[[int, StepRecord], StepRecord]) -> list[StepRecord]:
    return [change(i, record) for i, record in enumerate(records)]


def kinds(records: list[StepRecord], moment: Moment | None = None) -> set[AlertKind]:
    return {alert.kind for alert in find_alerts(records, moment or Moment())}


def ever(records: list[StepRecord]) -> set[AlertKind]:
    """Everything said in the course of a run, as the watch would."""
    return set().union(*(kinds(records[: n + 1]) for n in range(len(records))))


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_run_is_never_alarmed(seed: int) -> None:
    assert ever(healthy(seed=seed)) == set()


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_noisy_run_is_never_alarmed(seed: int) -> None:
    noise = random.Random(seed)
    flat = [replace(r, reward=noise.gauss(0, 1), gold=noise.gauss(0, 1)) for r in healthy(seed=seed)]
    assert ever(flat) == set()


PLANTED: dict[AlertKind, Callable[[int, StepRecord], StepRecord]] = {
    AlertKind.NOT_FINITE: lambda i, r: replace(r, not_finite=("policy/loss",)) if i == 59 else r,
    AlertKind.KL_RUNAWAY: lambda i, r: replace(r, kl=5.0 * 2.0 ** (i - 52)) if i > 52 else r,
    AlertKind.REWARD_COLLAPSE: lambda i, r: replace(r, reward=(r.reward or 0) - 0.06 * (i - 45)) if i > 45 else r,
    AlertKind.REWARD_GAMED: lambda i, r: replace(r, gold=(r.gold or 0) - 0.9 * i / 60),
    AlertKind.NO_VALID_REWARD: lambda i, r: replace(r, failed=40.0) if i == 59 else r,
    AlertKind.ENTROPY: lambda i, r: replace(r, entropy=1.6 * 0.9**i),
    AlertKind.REPETITION: lambda i, r: replace(r, repetition=0.05 + 0.9 * i / 60),
}


@pytest.mark.parametrize("kind", PLANTED, ids=lambda kind: kind.name)
def test_a_planted_sign_is_found_and_nothing_else(kind: AlertKind) -> None:
    assert ever(changed(healthy(), PLANTED[kind])) == {kind}


@pytest.mark.parametrize("factor", [2.5, 0.3])
def test_answers_that_double_or_halve_while_the_reward_rises(factor: float) -> None:
    def stretch(i: int, record: StepRecord) -> StepRecord:
        return replace(record, response_length=80 * factor ** (i / 55), gold=None)

    assert ever(changed(healthy(), stretch)) == {AlertKind.REWARD_GAMED}


def test_longer_answers_without_a_rising_reward_are_no_gaming() -> None:
    flat = changed(healthy(), lambda i, r: replace(r, reward=0.5 + 0.01 * (i % 3), response_length=80.0 + 4 * i))
    assert ever(flat) == set()


def test_an_entropy_that_explodes_and_one_that_was_low_from_the_start() -> None:
    wild = changed(healthy(), lambda i, r: replace(r, entropy=1.6 + 0.1 * i))
    low = changed(healthy(), lambda i, r: replace(r, entropy=0.02 + 0.001 * (i % 5)))
    assert ever(wild) == {AlertKind.ENTROPY}
    assert ever(low) == set()


def test_a_model_that_repeated_itself_from_the_start_is_left_alone() -> None:
    assert ever(changed(healthy(), lambda i, r: replace(r, repetition=0.6 + 0.003 * i))) == set()


def test_limits_and_actions_are_those_of_the_settings() -> None:
    def said(records: list[StepRecord], guard: GuardConfig) -> set[AlertKind]:
        return {a.kind for n in range(len(records)) for a in find_alerts(records[: n + 1], Moment(), guard)}

    longer = changed(healthy(), lambda i, r: replace(r, response_length=80.0 + 4 * i, reward=0.5))
    assert said(longer, GuardConfig()) == set(), "off unless it is asked for"
    assert said(longer, GuardConfig(length=GuardAction.stop)) == {AlertKind.LENGTH}
    assert said(longer, GuardConfig(length=GuardAction.stop, length_factor=5.0)) == set()
    assert said(healthy(), GuardConfig(kl_limit=4.0)) == {AlertKind.KL_RUNAWAY}
    assert said(healthy(), GuardConfig(kl_limit=4.0, kl=GuardAction.off)) == set()
    falls = changed(healthy(), lambda i, r: replace(r, entropy=1.6 * 0.9**i))
    assert said(falls, GuardConfig(entropy_low=0.001)) == set()
    assert action_of(AlertKind.REWARD_GAMED, GuardConfig(gamed=GuardAction.rollback)) is GuardAction.rollback
    assert action_of(AlertKind.DISK, GuardConfig()) is GuardAction.warn
    assert set(GUARDED.values()) <= {field.name for field in fields(GuardConfig)}


def test_the_best_step_is_that_of_the_gold_score_and_else_the_newest() -> None:
    records = changed(healthy(), lambda i, r: replace(r, gold=-abs(i - 30) / 30))
    assert best_step(records, [10, 20, 30, 40, 50]) == 30  # mean of 26 to 30; that of 36 to 40 is lower
    assert best_step(changed(records, lambda _, r: replace(r, gold=None)), [10, 20, 40]) == 40
    assert best_step(records, []) is None


def test_a_resumed_run_is_held_against_its_own_beginning(tmp_path: Path) -> None:
    records = changed(healthy(), lambda i, r: replace(r, repetition=0.05 + 0.9 * i / 60))
    told = list[Alert]()
    for before in ([], records[:50]):
        watch = AlertWatch(tmp_path / "alerts.jsonl", keep_to_step=-1, tell=told.append, before=before)
        for record in records[50:]:
            watch.step(record)
        watch.close()
    assert [alert.kind for alert in told] == [AlertKind.REPETITION], "its own last ten steps alone show nothing"


def test_a_kl_that_was_high_from_the_start_is_left_alone() -> None:
    """The reference is another model: far away, but it does not run."""
    assert ever(changed(healthy(), lambda i, r: replace(r, kl=40.0 + (i % 2)))) == set()


def test_a_stall_and_a_full_disk() -> None:
    records = healthy()
    assert kinds(records, Moment(idle_s=599.0, disk_free_bytes=3 * GIB)) == set()
    assert kinds(records, Moment(idle_s=601.0)) == {AlertKind.STALL}
    slow = changed(records, lambda _, r: replace(r, seconds=300.0))
    assert kinds(slow, Moment(idle_s=2900.0)) == set(), "ten of its own steps are no stall"
    assert kinds(records, Moment(disk_free_bytes=GIB)) == {AlertKind.DISK}
    assert kinds([], Moment(idle_s=1e6, disk_free_bytes=GIB)) == {AlertKind.DISK}, "start-up has deadlines of its own"


def test_a_line_of_metrics_becomes_a_record() -> None:
    row = MetricRow(7, {"reward/mean": 0.5, "reward/truth": 0.1, "policy/kl": None, "time/step": 3.0})
    record = step_record(row, gold="truth", samples=16)
    expected = StepRecord(7, ("policy/kl",), reward=0.5, gold=0.1, samples=16.0, seconds=3.0)
    assert record == expected


def test_each_kind_is_told_once_also_after_a_resume(tmp_path: Path) -> None:
    path, told = tmp_path / "alerts.jsonl", list[Alert]()
    broken = [StepRecord(step, ("policy/loss",)) for step in (1, 2)]
    for keep_to in (-1, 2):
        watch = AlertWatch(path, keep_to_step=keep_to, tell=told.append)
        for record in broken:
            watch.step(record)
        watch.close()
    assert [(alert.kind, alert.step) for alert in told] == [(AlertKind.NOT_FINITE, 1)]
    assert read_alerts(path) == tuple(told)
    watch = AlertWatch(path, keep_to_step=0, tell=told.append)  # goes on from before the alert: it may come again
    watch.step(broken[1])
    watch.close()
    assert [alert.step for alert in read_alerts(path)] == [2] and len(told) == 2


def test_torn_and_unknown_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    path.write_text('{"kind": "DISK", "step": 3, "text": "t", "serious": false}\n{"kind": "NEWER"}\n[1]\n{"ki')
    assert read_alerts(path) == (Alert(AlertKind.DISK, 3, "t"),)
