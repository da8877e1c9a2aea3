"""N ranks of one actor class as one thing: start them, call them all, know which one failed and why.

Every call has a deadline. The first failure ends the call: the other ranks may hang in a collective that will never
complete, so a group with a failed rank is broken and only good for `stop`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)
from raylign.cluster.errors import FailureKind, RoleError
from raylign.cluster.oom import memory_kills
from raylign.conf.errors import RaylignError, UserError

_SETTLE_S = 3.0
"""After a first failure, how long the other ranks' failures are awaited: when a rank dies, its peers' broken
collectives are often reported before its death is."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

RankCall = Callable[[ActorHandle, int], "ray.ObjectRef[Any]"]


class WorkerGroup:
    """Ranks `0 .. len(actors) - 1` of a role."""

    def __init__(self, role: str, actors: Sequence[ActorHandle]) -> None:
        self.role = role
        self.actors = tuple(actors)
        self._broken: RaylignError | None = None

    @classmethod
    def spawn(
        cls,
        actor_class: type,
        *,
        role: str,
        options: Sequence[Mapping[str, object]],
        env_vars: Sequence[Mapping[str, str]],
        args: Sequence[tuple[object, ...]],
    ) -> WorkerGroup:
        """Start one actor a rank; nothing is awaited. `options` come from a Reservation, `args` go to `__init__`.

        A rank is never restarted by Ray: a fresh process without its peers' state is worse than a dead one.
        """
        remote = ray.remote(actor_class)
        actors = [
            remote.options(max_restarts=0, max_task_retries=0, runtime_env={"env_vars": dict(env)}, **rank).remote(*arg)
            for rank, env, arg in zip(options, env_vars, args, strict=True)
        ]
        return cls(role, actors)

    def __len__(self) -> int:
        return len(self.actors)

    async def call(self, each: RankCall, *, verb: str, timeout_s: float) -> list[Any]:
        """`each(actor, rank)` on all ranks; the results in rank order.

        Raises RoleError naming rank, verb and cause on the first failure, or all late ranks at the deadline. What a
        rank refuses with a UserError (a folder that is no model) is the user's to fix and raised as it is.
        """
        if self._broken is not None:
            raise self._broken
        tasks = [_awaited(each(actor, rank)) for rank, actor in enumerate(self.actors)]
        return await self._collect(tasks, tuple(range(len(tasks))), verb=verb, timeout_s=timeout_s)

    async def call_rank(self, rank: int, each: RankCall, *, verb: str, timeout_s: float) -> Any:
        """`each` on one rank only. Not for anything with a collective inside."""
        if self._broken is not None:
            raise self._broken
        task = _awaited(each(self.actors[rank], rank))
        return (await self._collect([task], (rank,), verb=verb, timeout_s=timeout_s))[0]

    @property
    def broken(self) -> bool:
        """Whether a call has failed: the ranks are only good for `stop`."""
        return self._broken is not None

    def stop(self) -> None:
        """Kill every rank. Idempotent."""
        for actor in self.actors:
            ray.kill(actor)

    async def _collect(
        self, tasks: Sequence[asyncio.Future[Any]], ranks: tuple[int, ...], *, verb: str, timeout_s: float
    ) -> list[Any]:
        try:
            _, pending = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            if any(_failed(t) for t in tasks) and pending:
                await asyncio.wait(pending, timeout=_SETTLE_S)
            error = self._first_error(tasks, ranks, verb=verb, timeout_s=timeout_s)
        finally:
            for task in tasks:
                task.cancel()
        if error is not None:
            self._broken = error
            raise error from error.__cause__
        return [task.result() for task in tasks]

    def _first_error(
        self, tasks: Sequence[asyncio.Future[Any]], ranks: tuple[int, ...], *, verb: str, timeout_s: float
    ) -> RaylignError | None:
        failures = [
            (rank, *classify(task.exception())) for rank, task in zip(ranks, tasks, strict=True) if _failed(task)
        ]
        if failures:
            rank, kind, cause = max(failures, key=lambda f: f[1].severity)  # the earliest rank among equals
            raised = tasks[ranks.index(rank)].exception()
            if (refused := refusal(raised)) is not None:
                return refused
            if kind is FailureKind.DIED:
                cause += memory_kills.note(self.role)
            silent = tuple(r for r, task in zip(ranks, tasks, strict=True) if not task.done())
            if silent and kind is FailureKind.RAISED:
                cause = f"{cause}; no answer from rank {', '.join(map(str, silent))}"
            error = RoleError(role=self.role, ranks=(rank,), verb=verb, kind=kind, cause=cause, silent=silent)
            error.__cause__ = raised
            return error
        late = tuple(rank for rank, task in zip(ranks, tasks, strict=True) if not task.done())
        if late:
            cause = (
                f"no answer within {timeout_s:g} s; the other ranks are done"
                if len(late) < len(ranks)
                else (f"no answer within {timeout_s:g} s from any rank")
            )
            return RoleError(role=self.role, ranks=late, verb=verb, kind=FailureKind.LATE, cause=cause)
        return None


def classify(error: BaseException | None) -> tuple[FailureKind, str]:
    """What kind of failure a rank's exception is, and its cause in one line."""
    match error:
        case RoleError():
            return error.kind, error.cause
        case ActorUnavailableError():
            return FailureKind.UNAVAILABLE, _line(error)
        case ActorDiedError() | WorkerCrashedError() | OutOfMemoryError() | ActorUnschedulableError():
            return FailureKind.DIED, _line(error)
        case RuntimeEnvSetupError():
            return FailureKind.DIED, f"its environment could not be set up: {_line(error)}"
        case RayTaskError():
            return classify_cause(error)
        case ObjectLostError():
            return FailureKind.LOST, _line(error)
        case TimeoutError():
            return FailureKind.LATE, _line(error)
        case None:
            raise ValueError("a call that did not fail has no kind of failure")
        case _:
            return FailureKind.RAISED, f"{type(error).__name__}: {_line(error)}"


def classify_cause(error: RayTaskError) -> tuple[FailureKind, str]:
    """A rank raised: what it raised decides, for it may itself have waited for an object that was lost."""
    cause = error.cause
    if isinstance(cause, RayError | TimeoutError) and not isinstance(cause, RayTaskError):
        return classify(cause)
    return FailureKind.RAISED, f"{type(cause).__name__}: {_line(cause)}"


def refusal(error: BaseException | None) -> UserError | None:
    """The UserError that a rank raised, as the rank raised it; None for any other failure."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, UserError) else None


def _awaited(ref: ray.ObjectRef[Any]) -> asyncio.Future[Any]:
    return asyncio.wrap_future(ref.future())


def _failed(task: asyncio.Future[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def _line(error: BaseException) -> str:
    """The message in one line: of an embedded traceback its last line, without Ray's colours."""
    lines = [_COLOUR.sub("", line).strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if any("Traceback" in line or "^^^^" in line for line in lines):
        return f"{lines[0].partition(', ')[0]}: {lines[-1]}"[:600]
    return " ".join(lines[:3])[:600]
