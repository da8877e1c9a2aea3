"""When a run needs a person: signs in its newest steps, each a pure rule over typed records.

`find_alerts` looks at the whole history that it is given and says what holds now; who sends it, and that it is sent
once, is records/tracking.py's business. Thresholds are meant to be quiet on a healthy run: windows are compared with
their own step-to-step spread, not with fixed numbers, wherever the scale of a metric is the user's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from raylign.records.glossary import describe
from raylign.records.metrics_log import MetricRow

WINDOW = 5
"""Steps whose mean is taken as the present value; a sign needs as many before it to compare with."""
RESERVE_GIB = 2.0
"""Free disk below which a checkpoint of even a small model may fail."""
STALL_FACTOR, STALL_LEAST_S = 10.0, 600.0
"""A step is stalled past this many median steps, and never before so many seconds."""

_SPREADS = 6.0
"""Standard errors of one window's mean that two windows must differ by; of a best and a newest one, more."""
_SPREADS_OF_BEST = 9.0
_KL_JUMP = 5.0
_LENGTH_FACTOR = 2.0
_MOST_FAILED = 0.5


class AlertKind(Enum):
    """What is wrong; one alert a kind and run."""

    NOT_FINITE = "a number is not finite"
    KL_RUNAWAY = "KL runs away"
    REWARD_COLLAPSE = "the reward collapses"
    REWARD_GAMED = "the reward may be gamed"
    NO_VALID_REWARD = "rewards fail"
    STALL = "no step for long"
    DISK = "the disk is nearly full"


@dataclass(frozen=True, slots=True)
class Alert:
    """One sign, with what to do. `serious`: the run as it stands is of no use."""

    kind: AlertKind
    step: int
    text: str
    serious: bool = False


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The figures of one step that the rules look at; None: the run does not have the figure, or it is not finite."""

    step: int
    not_finite: tuple[str, ...] = ()
    reward: float | None = None
    gold: float | None = None  # the true score, where evaluation.gold names one
    kl: float | None = None  # nats a sequence
    response_length: float | None = None  # tokens
    failed: float | None = None  # samples whose reward could not be had
    samples: float | None = None  # sampled in this step
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known beside the steps: seconds since the last one ended (or the first began), and free disk space."""

    idle_s: float = 0.0
    disk_free_bytes: int | None = None


def step_record(row: MetricRow, *, gold: str = "", samples: int = 0) -> StepRecord:
    """A line of metrics.jsonl as the rules read it. `gold`: the reward part that is the truth; `samples`: of a step."""
    values = row.values
    return StepRecord(
        step=row.step,
        not_finite=tuple(name for name, value in values.items() if value is None),
        reward=values.get("reward/mean"),
        gold=values.get(f"reward/{gold}") if gold else None,
        kl=values.get("policy/kl"),
        response_length=values.get("rollout/response_length"),
        failed=values.get("reward/failed"),
        samples=float(samples) if samples else None,
        seconds=values.get("time/step"),
    )


def find_alerts(records: Sequence[StepRecord], moment: Moment) -> tuple[Alert, ...]:
    """Every sign that holds at the newest record or at this moment. `records`: in step order, possibly empty."""
    steps = (_not_finite, _kl_runaway, _reward_collapse, _reward_gamed, _rewards_fail)
    found = [rule(records) for rule in steps] if records else []
    return tuple(alert for alert in (*found, _stall(records, moment), _disk(records, moment)) if alert is not None)


def _not_finite(records: Sequence[StepRecord]) -> Alert | None:
    last = records[-1]
    if not last.not_finite:
        return None
    names = ", ".join(last.not_finite[:3]) + (" and others" if len(last.not_finite) > 3 else "")
    return Alert(
        AlertKind.NOT_FINITE,
        last.step,
        f"{names} is NaN or infinite: resume from an earlier checkpoint with a lower learning rate.",
        serious=True,
    )


def _kl_runaway(records: Sequence[StepRecord]) -> Alert | None:
    """Above the usual range for three steps, and far above what it was: a level that was chosen is left alone."""
    values = _series(records, lambda r: r.kl)
    entry = describe("policy/kl")
    usual = entry.high if entry and entry.high is not None else 8.0
    if len(values) < WINDOW + 3 or records[-1].kl is None:
        return None
    before, now = statistics.median(values[-WINDOW - 3 : -3]), values[-3:]
    if min(now) <= usual or min(now) < _KL_JUMP * max(before, 0.0):
        return None
    return Alert(
        AlertKind.KL_RUNAWAY,
        records[-1].step,
        f"KL to the reference is {now[-1]:.3g} nats a sequence after {before:.3g} a few steps earlier: raise the KL "
        "coefficient or lower policy.optim.lr, and read the samples.",
    )


def _reward_collapse(records: Sequence[StepRecord]) -> Alert | None:
    """Below where it began, or three quarters of what was gained are lost, by more than steps differ anyway."""
    values = _series(records, lambda r: r.reward)
    if len(values) < 3 * WINDOW or records[-1].reward is None:
        return None
    means = [statistics.fmean(values[i : i + WINDOW]) for i in range(len(values) - WINDOW + 1)]
    start, best, now = means[0], max(means[:-WINDOW]), means[-1]
    noise = _SPREADS_OF_BEST * _spread(values)
    lost = best - now > 0.75 * (best - start) and best - start > noise
    if not (lost or start - now > noise) or best - now <= noise:
        return None
    return Alert(
        AlertKind.REWARD_COLLAPSE,
        records[-1].step,
        f"the mean reward fell from {best:.3g} at its best to {now:.3g} (it began at {start:.3g}): stop, and go on "
        "from an earlier checkpoint with a lower policy.optim.lr.",
    )


def _reward_gamed(records: Sequence[StepRecord]) -> Alert | None:
    """The reward rises while the truth falls, or while answers double or halve."""
    values = _series(records, lambda r: r.reward)
    if len(values) < 2 * WINDOW or records[-1].reward is None:
        return None
    rise = statistics.fmean(values[-WINDOW:]) - statistics.fmean(values[:WINDOW])
    if rise <= _SPREADS * _spread(values):
        return None
    why = _gold_falls(records) or _length_moves(records)
    if why is None:
        return None
    text = f"the mean reward rose by {rise:.3g} while {why}: read the samples before continuing."
    return Alert(AlertKind.REWARD_GAMED, records[-1].step, text)


def _gold_falls(records: Sequence[StepRecord]) -> str | None:
    gold = _series(records, lambda r: r.gold)
    if len(gold) < 2 * WINDOW:
        return None
    first, last = statistics.fmean(gold[:WINDOW]), statistics.fmean(gold[-WINDOW:])
    return f"the gold score fell from {first:.3g} to {last:.3g}" if first - last > _SPREADS * _spread(gold) else None


def _length_moves(records: Sequence[StepRecord]) -> str | None:
    lengths = _series(records, lambda r: r.response_length)
    if len(lengths) < 2 * WINDOW:
        return None
    first, last = statistics.fmean(lengths[:WINDOW]), statistics.fmean(lengths[-WINDOW:])
    if first / _LENGTH_FACTOR < last < first * _LENGTH_FACTOR:
        return None
    return f"answers went from {first:.0f} to {last:.0f} tokens"


def _rewards_fail(records: Sequence[StepRecord]) -> Alert | None:
    last = records[-1]
    if not last.failed or last.samples is None or last.failed <= _MOST_FAILED * last.samples:
        return None
    return Alert(
        AlertKind.NO_VALID_REWARD,
        last.step,
        f"{last.failed:.0f} of {last.samples:.0f} rewards of this step failed: the column reward_failure of the "
        "samples file says why.",
        serious=last.failed >= last.samples,
    )


def _stall(records: Sequence[StepRecord], moment: Moment) -> Alert | None:
    times = _series(records, lambda r: r.seconds)
    if not times:
        return None  # start-up has deadlines of its own
    usual = statistics.median(times)
    if moment.idle_s <= max(STALL_LEAST_S, STALL_FACTOR * usual):
        return None
    return Alert(
        AlertKind.STALL,
        records[-1].step,
        f"no step has ended for {moment.idle_s / 60:.0f} min, where one usually takes {usual:.3g} s: look at the logs "
        "folder and at `ray status`.",
    )


def _disk(records: Sequence[StepRecord], moment: Moment) -> Alert | None:
    free = moment.disk_free_bytes
    if free is None or free >= RESERVE_GIB * 2**30:
        return None
    return Alert(
        AlertKind.DISK,
        records[-1].step if records else 0,
        f"{free / 2**30:.2f} GiB are left where the run folder lies: the next checkpoint may fail; make room or lower "
        "checkpoint.keep.",
    )


def _series(records: Sequence[StepRecord], figure: Callable[[StepRecord], float | None]) -> list[float]:
    return [value for value in map(figure, records) if value is not None]


def _spread(values: Sequence[float]) -> float:
    """Standard error of a window's mean, from step-to-step differences, which a slow drift does not inflate."""
    differences = [b - a for a, b in pairwise(values)]
    return statistics.pstdev(differences) / (2 * WINDOW) ** 0.5 if differences else 0.0
