"""Weight publication as a transaction.

    manifest ──► health check, pause every worker ──► transport ──► read back, canaries ──► resume at version v
                              │                         │                 │
                              └── a worker that fails is tried once more, then does not serve ──► the run goes on
                                  with the verified ones; with none, PublishError says worker, tensors and gap

A worker that answers no health check, or is late twice, or is refused in two publications one after another, is given
up: the fleet ends it and starts another.

Pure asyncio over Protocols: no Ray, no engine. Each phase has a deadline, and the error names who was late.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from raylign.cluster.errors import FailureKind, RoleError
from raylign.conf.errors import RunFailed
from raylign.rollout.interfaces import (
    Canary,
    EngineDead,
    NoWorkerLeft,
    VerifyReport,
    WeightManifest,
    WeightUpdateError,
)
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.interfaces import PublishResult, WeightSource
from raylign.trainer.loops.time_sharing import CardTurns, OwnCards
from raylign.trainer.loops.transport import ThroughStore, Transport, WeightSink

T = TypeVar("T")
logger = logging.getLogger(__name__)

NAMES_SHOWN = 4
"""Tensor names in one error message; the rest is counted."""


class PublishError(RunFailed):
    """No rollout worker serves the new weights; the message names each worker, its tensors and its canary gap."""


@dataclass(frozen=True, slots=True)
class _Shipment:
    """What goes to every worker."""

    manifest: WeightManifest
    canaries: Sequence[Canary]


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a worker does not serve the new version."""

    sink: WeightSink
    reason: str
    dead: bool = False
    late: bool = False


class WeightPublisher:
    """Sequences one transaction after another. `members()` are the workers alive now, served or quarantined."""

    def __init__(
        self,
        source: WeightSource,
        members: Callable[[], Sequence[WeightSink]],
        *,
        timeout_s: float,
        canary_limit: CanaryLimit,
        cards: CardTurns | None = None,
        adapters_only: bool = False,
        whole_weights: Transport | None = None,
    ) -> None:
        """`timeout_s`: deadline of each phase; `cards`: where engines share the learners'; `adapters_only`: once every
        engine serves a version, adapters alone are sent. Not with `cards`: engines forget their weights in their sleep.
        `whole_weights`: how these travel, when not through the object store.
        """
        self._source, self._members = source, members
        self._cards = cards or OwnCards()
        self._timeout_s, self._limit = timeout_s, canary_limit
        self._adapters_only = adapters_only
        self._store = ThroughStore(source)
        self._whole_weights = whole_weights or self._store
        self._serving: frozenset[str] = frozenset()  # who serves the version before
        self._refused: frozenset[str] = frozenset()  # who does not serve the version before

    async def publish(self, version: int) -> PublishResult:
        """Every worker that serves afterwards serves `version`, verified.

        Raises PublishError when none does, NoWorkerLeft when none lives.
        """
        start = time.monotonic()
        sinks = list(self._members())
        if not sinks:
            raise NoWorkerLeft(f"version {version} cannot be published: no rollout worker is alive")
        alone = self._adapters_only and all(sink.name in self._serving for sink in sinks)
        shipment = await self._shipment(version, adapters_only=alone)
        await self._cards.engines()  # nothing is asked of the learners' cards any more: the weights lie in the store
        reports, failures = await self._attempt(sinks, shipment)
        again = [failure for failure in failures if not failure.dead]
        if again:
            logger.warning("publication of version %d is tried again: %s", version, _sentences(again))
            if alone:
                logger.warning("adapters alone did not do: all weights are sent, from now on at every version")
                self._adapters_only = False
                shipment = await self._shipment(version, adapters_only=False)
            retried, failed_again = await self._attempt([failure.sink for failure in again], shipment)
            reports |= retried
            failures = [failure for failure in failures if failure.dead] + failed_again
        self._judge(version, failures)
        self._serving = frozenset(reports)
        if not reports:
            kind = NoWorkerLeft if all(failure.dead for failure in failures) else PublishError
            raise kind(f"version {version} is served by no worker: {_sentences(failures)}")
        return PublishResult(
            version=version,
            seconds=time.monotonic() - start,
            num_bytes=shipment.manifest.num_bytes,
            verified_workers=len(reports),
            canary_gap=max(report.canary_gap for report in reports.values()),
            canary_limit=self._limit.value,
            use={name: report.use for name, report in reports.items() if report.use is not None},
        )

    async def _shipment(self, version: int, *, adapters_only: bool) -> _Shipment:
        told = await from_source(
            self._source.manifest(version, adapters_only=adapters_only), "manifest", self._timeout_s
        )
        canaries = await from_source(self._source.canaries(), "canary log-probs", self._timeout_s)
        return _Shipment(replace(told, max_canary_gap=self._limit.value), canaries)

    def _judge(self, version: int, failures: Sequence[_Failure]) -> None:
        """Who has failed twice now does not serve; who is hopeless is given up, so that the fleet replaces it."""
        kept = []
        for failure in failures:
            sink = failure.sink
            if failure.dead:
                sink.die(failure.reason)
            elif failure.late or sink.name in self._refused:
                again = "twice" if failure.late else f"as before version {version}"
                sink.die(f"{failure.reason}, {again}")
            else:
                kept.append(failure)
                sink.quarantine(failure.reason)
        self._refused = frozenset(failure.sink.name for failure in kept)
        if kept:
            logger.warning("version %d is published without: %s", version, _sentences(kept))

    async def _attempt(
        self, sinks: Sequence[WeightSink], shipment: _Shipment
    ) -> tuple[dict[str, VerifyReport], list[_Failure]]:
        """One transaction. Returns the report of each worker that serves now, by name, and the failures."""
        version = shipment.manifest.version
        steps = _Attempt(self._timeout_s)
        # A worker that hangs would hold every later phase up until its deadline.
        healthy = await steps.workers(sinks, lambda sink: sink.ping(), "health check")
        begun = await steps.workers(healthy, lambda sink: sink.begin_update(shipment.manifest), "begin_update")
        if not begun:
            return {}, steps.failures
        # After the pause: where all receive together, each must be listening.
        transport = self._store if shipment.manifest.adapters else self._whole_weights
        loaded = await transport.move(begun, steps)
        reports = await steps.answers(loaded, lambda sink: sink.finish_update(shipment.canaries), "finish_update")
        limit = self._limit.settle(version, [r.canary_gap for _, r in reports if not r.mismatched and not r.missing])
        good = [(sink, report) for sink, report in reports if report.passed(limit)]
        steps.failures += [
            _Failure(sink, f"{sink.name}: {_describe(report, self._limit)}")
            for sink, report in reports
            if not report.passed(limit)
        ]
        resumed = await steps.workers([sink for sink, _ in good], lambda sink: sink.resume(version), "resume")
        return {sink.name: report for sink, report in good if sink in resumed}, steps.failures


class _Attempt:
    """The calls of one transaction (transport.Steps), and who failed in them."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.failures: list[_Failure] = []

    async def workers(
        self, members: Sequence[WeightSink], call: Callable[[WeightSink], Awaitable[object]], verb: str
    ) -> list[WeightSink]:
        """`call` on all of `members`; those that did it."""
        return [sink for sink, _ in await self.answers(members, call, verb)]

    async def answers(
        self, members: Sequence[WeightSink], call: Callable[[WeightSink], Awaitable[T]], verb: str
    ) -> list[tuple[WeightSink, T]]:
        """The same, with what each answered."""
        results = await asyncio.gather(*(self._one(sink, call, verb) for sink in members))
        self.failures += [result for result in results if isinstance(result, _Failure)]
        return [(s, r) for s, r in zip(members, results, strict=True) if not isinstance(r, _Failure)]

    async def _one(self, sink: WeightSink, call: Callable[[WeightSink], Awaitable[T]], verb: str) -> T | _Failure:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call(sink)
        except TimeoutError:
            reason = f"{sink.name} did not finish {verb} within sync.timeout_s={self._timeout_s:g} s"
            return _Failure(sink, reason, late=True)
        except (EngineDead, WeightUpdateError) as error:
            reason = str(error) if sink.name in str(error) else f"{sink.name}: {verb}: {error}"
            return _Failure(sink, reason, dead=isinstance(error, EngineDead))

    async def source(self, call: Awaitable[T], what: str) -> T:
        """A call to the learner. Raises RoleError when it is late."""
        return await from_source(call, what, self._timeout_s)


async def from_source(call: Awaitable[T], what: str, timeout_s: float) -> T:
    """A call to the learner, as a role that must not be late: RoleError."""
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except TimeoutError as error:
        cause = f"no answer within sync.timeout_s={timeout_s:g} s"
        raise RoleError(role="policy", ranks=(), verb=what, kind=FailureKind.LATE, cause=cause) from error


def _describe(report: VerifyReport, limit: CanaryLimit) -> str:
    """Why a report did not pass."""
    parts = []
    if report.mismatched:
        parts.append(f"served weights differ from the learner's: {_names(report.mismatched)}")
    if report.missing:
        parts.append(f"never arrived: {_names(report.missing)}")
    unasked = math.isinf(report.canary_gap) and bool(parts)  # a wrong engine without a cache is asked nothing
    if not unasked and not report.canary_gap <= limit.value:
        parts.append(
            f"the engine's canary log-probs are {report.canary_gap:.3g} nats a token from the learner's "
            f"({limit.source()})"
        )
    return "; ".join(parts)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def _sentences(failures: Sequence[_Failure]) -> str:
    return "; ".join(failure.reason for failure in failures)
