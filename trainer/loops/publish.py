"""Weight publication as a transaction.

    manifest ──► health check, pause every worker ──► buckets ──► read back, canaries ──► resume at version v
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
from typing import Protocol, TypeVar

from raylign.cluster.errors import FailureKind, RoleError
from raylign.conf.errors import RunFailed
from raylign.rollout.gate import gather_or_cancel
from raylign.rollout.interfaces import (
    Canary,
    EngineDead,
    NoWorkerLeft,
    Ref,
    VerifyReport,
    WeightManifest,
    WeightUpdateError,
)
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.interfaces import PublishResult, WeightSource
from raylign.trainer.loops.time_sharing import CardTurns, OwnCards

T = TypeVar("T")
logger = logging.getLogger(__name__)

BUCKETS_UNDER_WAY = 2
"""Calls of `load_bucket` to one worker at a time."""
NAMES_SHOWN = 4
"""Tensor names in one error message; the rest is counted."""


class PublishError(RunFailed):
    """No rollout worker serves the new weights; the message names each worker, its tensors and its canary gap."""


class WeightSink(Protocol):
    """One rollout worker as the receiver of weights."""

    @property
    def name(self) -> str: ...
    async def ping(self) -> None: ...
    async def begin_update(self, manifest: WeightManifest) -> None: ...
    async def load_bucket(self, bucket: Ref) -> None: ...
    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport: ...
    async def resume(self, version: int) -> None: ...

    def quarantine(self, reason: str) -> None:
        """The worker takes no requests until a later publication verifies it."""
        ...

    def die(self, reason: str) -> None:
        """The worker is gone: it is not published to again."""
        ...


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
    ) -> None:
        """`timeout_s`: deadline of each phase; `cards`: where engines share the learners'; `adapters_only`: once every
        engine serves a version, adapters alone are sent. Not with `cards`: engines forget their weights in their sleep.
        """
        self._source, self._members = source, members
        self._cards = cards or OwnCards()
        self._timeout_s, self._limit = timeout_s, canary_limit
        self._adapters_only = adapters_only
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
        gaps, failures = await self._attempt(sinks, shipment)
        again = [failure for failure in failures if not failure.dead]
        if again:
            logger.warning("publication of version %d is tried again: %s", version, _sentences(again))
            if alone:
                logger.warning("adapters alone did not do: all weights are sent, from now on at every version")
                self._adapters_only = False
                shipment = await self._shipment(version, adapters_only=False)
            retried, failed_again = await self._attempt([failure.sink for failure in again], shipment)
            gaps |= retried
            failures = [failure for failure in failures if failure.dead] + failed_again
        self._judge(version, failures)
        self._serving = frozenset(gaps)
        if not gaps:
            kind = NoWorkerLeft if all(failure.dead for failure in failures) else PublishError
            raise kind(f"version {version} is served by no worker: {_sentences(failures)}")
        return PublishResult(
            version=version,
            seconds=time.monotonic() - start,
            num_bytes=shipment.manifest.num_bytes,
            verified_workers=len(gaps),
            canary_gap=max(gaps.values()),
            canary_limit=self._limit.value,
        )

    async def _shipment(self, version: int, *, adapters_only: bool) -> _Shipment:
        told = await self._from_source(self._source.manifest(version, adapters_only=adapters_only), "manifest")
        canaries = await self._from_source(self._source.canaries(), "canary log-probs")
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
    ) -> tuple[dict[str, float], list[_Failure]]:
        """One transaction. Returns the canary gap of each worker that serves now, by name, and the failures."""
        version = shipment.manifest.version
        failures: list[_Failure] = []

        async def phase(members: Sequence[WeightSink], call: Callable[[WeightSink], Awaitable[T]], verb: str) -> list:
            results = await asyncio.gather(*(self._one(sink, call, verb) for sink in members))
            failures.extend(result for result in results if isinstance(result, _Failure))
            return [(s, r) for s, r in zip(members, results, strict=True) if not isinstance(r, _Failure)]

        def alive(done: Sequence[tuple[WeightSink, object]]) -> list[WeightSink]:
            return [sink for sink, _ in done]

        # A worker that hangs would hold every later phase up until its deadline.
        healthy = alive(await phase(sinks, lambda sink: sink.ping(), "health check"))
        begun = alive(await phase(healthy, lambda sink: sink.begin_update(shipment.manifest), "begin_update"))
        if not begun:
            return {}, failures
        # After the pause, so that a transport that moves tensors itself finds every worker listening.
        buckets = await self._from_source(self._source.buckets(), "weights")

        async def load(sink: WeightSink) -> None:
            left = iter(buckets)

            async def one_by_one() -> None:
                for bucket in left:
                    await sink.load_bucket(bucket)

            # One is written to memory that the engine can map while the engine loads the other.
            await gather_or_cancel([one_by_one() for _ in range(BUCKETS_UNDER_WAY)])

        loaded = alive(await phase(begun, load, "load_bucket"))
        reports = await phase(loaded, lambda sink: sink.finish_update(shipment.canaries), "finish_update")
        limit = self._limit.settle(version, [r.canary_gap for _, r in reports if not r.mismatched and not r.missing])
        good = [(sink, report) for sink, report in reports if report.passed(limit)]
        failures += [
            _Failure(sink, f"{sink.name}: {_describe(report, self._limit)}")
            for sink, report in reports
            if not report.passed(limit)
        ]
        resumed = alive(await phase(alive(good), lambda sink: sink.resume(version), "resume"))
        return {sink.name: report.canary_gap for sink, report in good if sink in resumed}, failures

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

    async def _from_source(self, call: Awaitable[T], what: str) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call
        except TimeoutError as error:
            cause = f"no answer within sync.timeout_s={self._timeout_s:g} s"
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
