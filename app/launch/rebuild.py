"""Whether a run that has lost a learner goes on: its ranks are started again from the last checkpoint, in the same job.

A rank cannot be replaced alone: its peers share its collectives and hold parts of one optimizer state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from json import dumps
from typing import TypeVar

from raylign.cluster.errors import FailureKind, HolderLost, RoleError
from raylign.conf.errors import Stopped
from raylign.conf.schema import RunConfig
from raylign.records.run_folder import plain

T = TypeVar("T")
LEARNER_ROLES = frozenset({"policy", "critic", "reference", "assembler", "feeder"})
_NO_MATTER = {
    "": ("name", "run_root", "callbacks", "callback_timeout_s", "cluster", "tracking", "checkpoint", "evaluation"),
    "rollout": ("num_workers", "timeout_s", "health_timeout_s", "max_concurrent"),
    "policy": ("num_ranks", "sequence_parallel_size", "zero_stage"),
    "critic": ("num_ranks", "sequence_parallel_size", "zero_stage"),
    "reference": ("num_ranks", "sharded"),
}
"""Settings that decide nothing of what a step computes but the order in which it is added up, by section."""


class Rebuilds:
    """Counts them: at most `most` without a new step between."""

    def __init__(self, most: int, tell: Callable[[str], None]) -> None:
        """`tell` gets one sentence a rebuild."""
        self._most, self._tell = most, tell
        self._count, self._furthest = 0, -1

    def allow(self, error: RoleError | HolderLost, *, step: int) -> None:
        """Raises `error` when what failed is no loss of a learner, or there were too many. `step`: the newest done."""
        if not is_loss(error):
            raise error
        if step > self._furthest:
            self._count, self._furthest = 0, step
        self._count += 1
        what = error.problems[-1]
        if self._count > self._most:
            error.problems = (
                f"{what}; cluster.max_rebuilds={self._most} rebuilds brought no new step"
                if self._most
                else f"{what}; cluster.max_rebuilds=0",
            )
            raise error
        self._tell(f"{what}; the learners are started again ({self._count} of {self._most} without a new step)")


def is_loss(error: RoleError | HolderLost) -> bool:
    """True for a rank that is gone or hangs; false for one that raised by itself and would raise again."""
    if isinstance(error, HolderLost):
        return True
    return error.role in LEARNER_ROLES and (error.kind is not FailureKind.RAISED or bool(error.silent))


async def rebuilt(start: Callable[[], Awaitable[T]], rebuilds: Rebuilds, *, step: int) -> T:
    """What `start` returns; a rank that dies while it starts is one more loss, and `start` is called again.

    Raises Stopped when they do not start, say because their node is gone: another start of the run may help.
    """
    while True:
        try:
            return await start()
        except RoleError as error:
            try:
                if error.kind is not FailureKind.DIED:
                    raise
                rebuilds.allow(error, step=step)
            except RoleError:
                raise Stopped(f"the learners could not be started again: {error.problems[-1]}") from error


def step_settings(config: RunConfig) -> str:
    """Digest of everything in the settings that decides what a step computes."""
    settings = plain(config)
    assert isinstance(settings, dict)
    for section, names in _NO_MATTER.items():
        place: Mapping[str, object] = settings[section] if section else settings
        assert isinstance(place, dict)
        for name in names:
            place.pop(name, None)
    return sha256(dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
