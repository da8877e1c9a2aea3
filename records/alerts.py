"""When a run needs a person: signs in its newest steps, each a pure rule over typed records.

`find_alerts` looks at the whole history that it is given and says what holds now; who sends it, and that it is sent
once, is records/tracking.py's business; what else is done about it (`guard.*`: stop, rollback), app/launch/guard.py's.
Thresholds are meant to be quiet on a healthy run: windows are compared with
their own step-to-step spread, not with fixed numbers, wherever the scale of a metric is the user's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from raylign.conf.schema import GUARD_WINDOW, GuardAction, GuardConfig
from raylign.records.glossary import describe
from raylign.records.metrics_log import MetricRow

WINDOW = GUARD_WINDOW
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
    ENTROPY = "the entropy leaves its range"
    LENGTH = "answers change their length"
    REPETITION = "answers repeat themselves"
    NO_VALID_REWARD = "rewards fail"
    STALL = "no step for long"
    DISK = "the disk is nearly full"


GUARDED = {
    AlertKind.KL_RUNAWAY: "kl",
    AlertKind.ENTROPY: "entropy",
    AlertKind.LENGTH: "length",
    AlertKind.REPETITION: "repetition",
    AlertKind.REWARD_GAMED: "gamed",
    AlertKind.REWARD_COLLAPSE: "reward",
}
"""The setting of `guard` that says what to do about a kind; the others are always said, and only said."""


STEPS_NEEDED = {
    AlertKind.KL_RUNAWAY: WINDOW + 3,
    AlertKind.ENTROPY: 2 * WINDOW,
    AlertKind.LENGTH: 2 * WINDOW,
    AlertKind.REPETITION: 2 * WINDOW,
    AlertKind.REWARD_GAMED: 2 * WINDOW,
    AlertKind.REWARD_COLLAPSE: 3 * WINDOW,
}
"""Before these many steps a guarded sign cannot be seen; a run that has fewer has not been told that it is well."""

_STEPS_TO_LIMIT = 3


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
    entropy: float | None = None  # nats a token
    repetition: float | None = None  # share of four-token runs


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
        entropy=values.get("policy/entropy", values.get("train/entropy")),
        repetition=values.get("rollout/repetition"),
    )


DEFAULTS = GuardConfig()


def action_of(kind: AlertKind, guard: GuardConfig) -> GuardAction:
    """What to do about a kind of alert."""
    found = getattr(guard, GUARDED[kind]) if kind in GUARDED else GuardAction.warn
    assert isinstance(found, GuardAction)
    return found


def watched(guard: GuardConfig, steps: int) -> tuple[AlertKind, ...]:
    """The guarded signs that are not off and could have been seen after so many steps."""
    needed = STEPS_NEEDED | ({AlertKind.KL_RUNAWAY: _STEPS_TO_LIMIT} if guard.kl_limit else {})
    return tuple(k for k in GUARDED if action_of(k, guard) is not GuardAction.off and steps >= needed[k])


def find_alerts(records: Sequence[StepRecord], moment: Moment, guard: GuardConfig = DEFAULTS) -> tuple[Alert, ...]:
    """Every sign that holds at the newest record or at this moment. `records`: in step order, possibly empty."""
    found = [rule(records) for rule in (_not_finite, _reward_collapse, _reward_gamed, _rewards_fail)] if records else []
    limited = [rule(records, guard) for rule in (_kl_runaway, _entropy, _length, _repetition)] if records else []
    every = (*found, *limited, _stall(records, moment), _disk(records, moment))
    return tuple(a for a in every if a is not None and action_of(a.kind, guard) is not GuardAction.off)


def best_step(records: Sequence[StepRecord], saved: Sequence[int]) -> int | None:
    """The best of the steps with a checkpoint; None: there is none.

    That is the highest gold score (mean of the WINDOW steps up to it), where there is one; else the newest, for the
    reward is what may have been gamed.
    """
    if not saved:
        return None
    golds = {step: [r.gold for r in records if step - WINDOW < r.step <= step and r.gold is not None] for step in saved}
    if all(golds.values()):
        return max(saved, key=lambda step: (statistics.fmean(golds[step]), step))
    return max(saved)


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


def _kl_runaway(records: Sequence[StepRecord], guard: GuardConfig) -> Alert | None:
    """Above the usual range for three steps, and far above what it was: a level that was chosen is left alone.

    Where a limit is given, three steps above it are enough.
    """
    values = _series(records, lambda r: r.kl)
    if records[-1].kl is None:
        return None
    if guard.kl_limit and len(values) >= _STEPS_TO_LIMIT and min(values[-_STEPS_TO_LIMIT:]) > guard.kl_limit:
        return Alert(
            AlertKind.KL_RUNAWAY,
            records[-1].step,
            f"KL to the reference has been above guard.kl_limit={guard.kl_limit:g} for three steps and is "
            f"{values[-1]:.3g} nats a sequence: raise the KL coefficient or lower policy.optim.lr.",
        )
    entry = describe("policy/kl")
    usual = entry.high if entry and entry.high is not None else 8.0
    if len(values) < STEPS_NEEDED[AlertKind.KL_RUNAWAY]:
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


def _entropy(records: Sequence[StepRecord], guard: GuardConfig) -> Alert | None:
    """Against the first steps, which are those of a model that somebody chose."""
    moved = _moved(records, lambda r: r.entropy)
    if moved is None or guard.entropy_low * moved[0] <= moved[1] <= guard.entropy_high * moved[0]:
        return None
    first, now = moved
    why, what = ("always says the same", "raise") if now < first else ("comes apart", "lower")
    return Alert(
        AlertKind.ENTROPY,
        records[-1].step,
        f"the policy's entropy went from {first:.3g} to {now:.3g} nats a token, so it {why}: lower policy.optim.lr or "
        f"{what} algorithm.entropy_coef, and go on from an earlier checkpoint.",
    )


def _length(records: Sequence[StepRecord], guard: GuardConfig) -> Alert | None:
    moved = _moved(records, lambda r: r.response_length)
    if moved is None or moved[0] / guard.length_factor < moved[1] < moved[0] * guard.length_factor:
        return None
    text = f"answers went from {moved[0]:.0f} to {moved[1]:.0f} tokens: read the samples before continuing."
    return Alert(AlertKind.LENGTH, records[-1].step, text)


def _repetition(records: Sequence[StepRecord], guard: GuardConfig) -> Alert | None:
    """Above the limit, and twice what it was: a model that repeated itself from the start is left alone."""
    moved = _moved(records, lambda r: r.repetition)
    if moved is None or moved[1] <= guard.repetition_limit or moved[1] < 2 * moved[0]:
        return None
    return Alert(
        AlertKind.REPETITION,
        records[-1].step,
        f"{100 * moved[1]:.0f} % of the four-token runs of an answer have been in it before, {100 * moved[0]:.0f} % at "
        "the start: read the samples; lower policy.optim.lr, or raise the KL coefficient.",
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


def _moved(records: Sequence[StepRecord], figure: Callable[[StepRecord], float | None]) -> tuple[float, float] | None:
    """Means of the first and of the newest WINDOW steps; None while they overlap, or without a newest figure."""
    values = _series(records, figure)
    if len(values) < 2 * WINDOW or figure(records[-1]) is None:
        return None
    return statistics.fmean(values[:WINDOW]), statistics.fmean(values[-WINDOW:])


def _series(records: Sequence[StepRecord], figure: Callable[[StepRecord], float | None]) -> list[float]:
    return [value for value in map(figure, records) if value is not None]


def _spread(values: Sequence[float]) -> float:
    """Standard error of a window's mean, from step-to-step differences, which a slow drift does not inflate."""
    differences = [b - a for a, b in pairwise(values)]
    return statistics.pstdev(differences) / (2 * WINDOW) ** 0.5 if differences else 0.0
