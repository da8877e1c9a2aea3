"""The weight transaction: who serves afterwards, and what is said about who does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from raylign.cluster.errors import RoleError
from raylign.rollout.interfaces import (
    AdapterSpec,
    Canary,
    EngineDead,
    NoWorkerLeft,
    Ref,
    TensorSpec,
    VerifyReport,
    WeightManifest,
    WeightUpdateError,
)
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.publish import PublishError, WeightPublisher

GOOD = VerifyReport(5, {}, (), (), 1e-5)


class Learner:
    """Two buckets; `slow` makes one of its answers late."""

    def __init__(self, log: list[str], slow: str = "") -> None:
        self.log, self.slow = log, slow

    async def _give(self, what: str) -> None:
        self.log.append(what)
        await asyncio.sleep(3600 if what == self.slow else 0)

    async def manifest(self, version: int, *, adapters_only: bool = False) -> WeightManifest:
        await self._give("manifest")
        specs = (TensorSpec("a", (2, 3), "float32", "x"), TensorSpec("b", (5,), "bfloat16", "y"))
        adapters = (AdapterSpec("a", 1, 2.0),) if adapters_only else ()
        return WeightManifest(version, specs, False, adapters=adapters)

    async def canaries(self) -> Sequence[Canary]:
        await self._give("canaries")
        return [Canary((1, 2), (-1.0,))]

    async def buckets(self) -> Sequence[Ref]:
        await self._give("buckets")
        return [Ref("bucket 0"), Ref("bucket 1")]


class Sink:
    """Finds `reports` one after the other; hangs or raises where told."""

    def __init__(
        self, name: str, log: list[str], *reports: VerifyReport, hang: str = "", fail: dict | None = None
    ) -> None:
        self.name, self.log, self.reports = name, log, list(reports)
        self.hang, self.fail = hang, fail or {}
        self.serves: int | None = 4
        self.quarantined = ""
        self.died = ""
        self.sent: list[str] = []

    async def _do(self, verb: str) -> None:
        self.log.append(f"{self.name} {verb}")
        if verb == self.hang:
            await asyncio.sleep(3600)
        if verb in self.fail:
            raise self.fail[verb]

    async def ping(self) -> None:
        await self._do("ping")

    async def begin_update(self, manifest: WeightManifest) -> None:
        self.serves = None
        self.sent.append("adapters" if manifest.adapters else "whole")
        await self._do("begin_update")

    async def load_bucket(self, bucket: Ref) -> None:
        await self._do("load_bucket")

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        await self._do("finish_update")
        return self.reports.pop(0) if self.reports else GOOD

    async def resume(self, version: int) -> None:
        await self._do("resume")
        self.serves = version

    def quarantine(self, reason: str) -> None:
        self.quarantined = reason

    def die(self, reason: str) -> None:
        self.died = reason


def publisher(learner: Learner, *sinks: Sink) -> WeightPublisher:
    return WeightPublisher(learner, lambda: sinks, timeout_s=0.2, canary_limit=CanaryLimit(0.05))


async def test_every_worker_is_paused_before_tensors_move_and_verified_before_any_resumes() -> None:
    log: list[str] = []
    sinks = [Sink("r0", log), Sink("r1", log)]
    result = await publisher(Learner(log), *sinks).publish(5)
    assert [s.serves for s in sinks] == [5, 5]
    assert (result.version, result.verified_workers, result.num_bytes) == (5, 2, 34)
    assert result.canary_gap == 1e-5
    order = {verb: [i for i, entry in enumerate(log) if entry.endswith(verb)] for verb in ("begin_update", "resume")}
    assert max(order["begin_update"]) < log.index("buckets")
    assert max(i for i, entry in enumerate(log) if entry.endswith("finish_update")) < min(order["resume"])
    assert sum(entry == "r0 load_bucket" for entry in log) == 2


async def test_one_bad_report_is_retried_and_healed() -> None:
    log: list[str] = []
    bad = VerifyReport(5, {}, ("lm_head.weight",), (), 0.27)
    sink = Sink("r0", log, bad)
    result = await publisher(Learner(log), sink).publish(5)
    assert sink.serves == 5 and result.verified_workers == 1 and not sink.quarantined
    assert log.count("r0 begin_update") == 2


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (VerifyReport(5, {}, ("lm_head.weight",), (), 0.0), "served weights differ from the learner's: lm_head.weight"),
        (VerifyReport(5, {}, (), ("a",), 0.0), "never arrived: a"),
        (VerifyReport(5, {}, (), (), 0.27), "the engine's canary log-probs are 0.27 nats a token from the learner's"),
        (VerifyReport(5, {}, (), (), float("nan")), "the engine's canary log-probs are nan nats"),
        (
            VerifyReport(5, {}, tuple("abcdef"), (), 0.0),
            "served weights differ from .*: a, b, c, d and 2 more",
        ),
    ],
)
async def test_a_worker_that_stays_wrong_does_not_serve(report: VerifyReport, message: str) -> None:
    log: list[str] = []
    wrong, right = Sink("r0", log, report, report), Sink("r1", log)
    result = await publisher(Learner(log), wrong, right).publish(5)
    assert result.verified_workers == 1 and right.serves == 5
    assert wrong.serves is None and wrong.quarantined.startswith("r0: ")
    with pytest.raises(PublishError, match=f"version 5 is served by no worker: r0: {message}"):
        await publisher(Learner(log), Sink("r0", log, report, report)).publish(5)


@pytest.mark.parametrize("verb", ["begin_update", "load_bucket", "finish_update", "resume"])
async def test_the_late_worker_is_named(verb: str) -> None:
    log: list[str] = []
    late, good = Sink("r0", log, hang=verb), Sink("r1", log)
    result = await publisher(Learner(log), late, good).publish(5)
    assert result.verified_workers == 1 and late.serves is None
    assert late.died == f"r0 did not finish {verb} within sync.timeout_s=0.2 s, twice" and not late.quarantined


async def test_one_that_hangs_before_a_publication_is_given_up_by_its_health_check() -> None:
    """Its deadline is the health check's, not that of two publications; and no later step waits for it again."""
    log: list[str] = []
    gone = EngineDead("r0: ping: no answer within 60 s")
    hung, good = Sink("r0", log, hang="begin_update", fail={"ping": gone}), Sink("r1", log)
    result = await publisher(Learner(log), hung, good).publish(5)
    assert result.verified_workers == 1 and result.seconds < 0.1
    assert hung.died == str(gone) and "r0 begin_update" not in log


async def test_one_that_is_refused_in_two_publications_running_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    bad = VerifyReport(5, {}, ("lm_head.weight",), (), 0.0)
    wrong, right = Sink("r0", log, bad, bad, GOOD, bad, bad, bad, bad), Sink("r1", log)
    publish = publisher(Learner(log), wrong, right).publish
    await publish(5)
    assert wrong.quarantined and not wrong.died
    await publish(6)
    assert wrong.serves == 6
    await publish(7)
    assert not wrong.died, "version 6 was served between the two"
    await publish(8)
    assert wrong.died == "r0: served weights differ from the learner's: lm_head.weight, as before version 8"
    assert [r.message for r in caplog.records if "is published without" in r.message and "version 8" in r.message] == []


@pytest.mark.parametrize("error", [EngineDead("engine core died"), WeightUpdateError("r0: tensor x arrived twice")])
async def test_a_failing_worker_is_named_with_its_cause(error: Exception) -> None:
    log: list[str] = []
    kind = NoWorkerLeft if isinstance(error, EngineDead) else PublishError
    with pytest.raises(kind, match=f"r0: .*{str(error).removeprefix('r0: ')}"):
        await publisher(Learner(log), Sink("r0", log, fail={"load_bucket": error})).publish(5)


@pytest.mark.parametrize(("slow", "what"), [("manifest", "manifest"), ("canaries", "canary"), ("buckets", "weights")])
async def test_a_late_learner_is_named(slow: str, what: str) -> None:
    log: list[str] = []
    with pytest.raises(RoleError, match=f"policy late during {what}"):
        await publisher(Learner(log, slow), Sink("r0", log)).publish(5)


async def test_nobody_to_publish_to_is_an_error() -> None:
    with pytest.raises(NoWorkerLeft, match="no rollout worker is alive"):
        await publisher(Learner([])).publish(5)


async def test_a_dead_worker_is_not_tried_twice_and_is_said_to_be_dead() -> None:
    log: list[str] = []
    dead, good = Sink("r0", log, fail={"begin_update": EngineDead("r0: begin_update: the actor died")}), Sink("r1", log)
    result = await publisher(Learner(log), dead, good).publish(5)
    assert result.verified_workers == 1 and good.serves == 5
    assert log.count("r0 begin_update") == 1, "a dead process was asked again"
    assert dead.died == "r0: begin_update: the actor died" and not dead.quarantined


def _alone(learner: Learner, members: list[Sink]) -> WeightPublisher:
    limit = CanaryLimit(0.05)
    return WeightPublisher(learner, lambda: members, timeout_s=0.2, canary_limit=limit, adapters_only=True)


async def test_adapters_alone_are_sent_to_engines_that_serve_the_version_before() -> None:
    log: list[str] = []
    members = [Sink("r0", log)]
    publish = _alone(Learner(log), members).publish
    results = [await publish(version) for version in (0, 1)]
    assert members[0].sent == ["whole", "adapters"] and members[0].serves == 1
    assert [result.num_bytes for result in results] == [34, 4 * (2 + 3)]
    members.append(Sink("r1", log))  # it has never had the weights
    await publish(2)
    await publish(3)
    assert members[0].sent[2:] == members[1].sent == ["whole", "adapters"]


async def test_where_adapters_alone_did_not_do_all_weights_are_sent_from_then_on(caplog) -> None:
    log: list[str] = []
    wrong = VerifyReport(1, {}, ("a",), (), 0.3)
    sink = Sink("r0", log, GOOD, wrong)
    publish = _alone(Learner(log), [sink]).publish
    for version in (0, 1, 2):
        result = await publish(version)
    assert sink.sent == ["whole", "adapters", "whole", "whole"] and sink.serves == 2 and result.num_bytes == 34
    assert "adapters alone did not do" in caplog.text


async def test_one_that_is_out_at_a_version_is_sent_all_weights_at_the_next() -> None:
    log: list[str] = []
    bad = VerifyReport(1, {}, ("a",), (), 0.0)
    out, good = Sink("r0", log, bad, bad), Sink("r1", log)
    publish = _alone(Learner(log), [out, good]).publish
    await publish(0)
    await publish(1)
    assert out.sent == ["whole", "whole", "whole"] and good.sent == ["whole", "whole"]
    await publish(2)
    assert good.sent[-1] == out.sent[-1] == "adapters"
