"""Weights by broadcast in a publication: who is called with whom, and what one member's failure costs the others."""

from __future__ import annotations

import asyncio

import pytest
from raylign.cluster.errors import RoleError
from raylign.rollout.interfaces import EngineDead, TransferLink, WeightUpdateError
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.publish import WeightPublisher
from raylign.trainer.loops.transport import Broadcast

from tests.unit.trainer.loops.test_publish import Learner, Sink


class Sender(Learner):
    """The learner's side; `breaks` are what the next broadcasts say of their end."""

    def __init__(self, log: list[str], slow: str = "", breaks: tuple[str, ...] = (), absent: str = "") -> None:
        super().__init__(log, slow)
        self.breaks, self.absent = list(breaks), absent

    async def open_transfer(self, num_workers: int) -> TransferLink:
        await self._give(f"open for {num_workers}")
        return TransferLink("127.0.0.1", 1, num_workers, 2, timeout_s=1.0, bucket_bytes=64)

    async def join_transfer(self) -> str:
        await self._give("join")
        absent, self.absent = self.absent, ""
        return absent

    async def send_weights(self) -> str:
        await self._give("send")
        return self.breaks.pop(0) if self.breaks else ""


class Receiver(Sink):
    """A worker that can be sent to by broadcast; what it is told to fail at, it fails at once."""

    first_rank = 0

    async def _do(self, verb: str) -> None:
        try:
            await super()._do(verb)
        finally:
            if isinstance(self.fail.get(verb), WeightUpdateError):
                del self.fail[verb]

    async def join_transfer(self, link: TransferLink) -> None:
        self.first_rank = link.first_rank
        await self._do("join_transfer")

    async def receive_weights(self) -> None:
        await self._do("receive_weights")


def publisher(sender: Sender, *sinks: Sink, adapters_only: bool = False) -> WeightPublisher:
    return WeightPublisher(
        sender,
        lambda: [sink for sink in sinks if not sink.died],
        timeout_s=0.2,
        canary_limit=CanaryLimit(0.05),
        adapters_only=adapters_only,
        whole_weights=Broadcast(sender),
    )


async def test_all_meet_before_anything_is_sent_and_each_engine_has_ranks_of_its_own() -> None:
    log: list[str] = []
    sinks = [Receiver("r0", log), Receiver("r1", log)]
    result = await publisher(Sender(log), *sinks).publish(5)
    assert result.verified_workers == 2 and [sink.serves for sink in sinks] == [5, 5]
    assert [sink.first_rank for sink in sinks] == [1, 3]
    sending = min(log.index(entry) for entry in ("send", "r0 receive_weights", "r1 receive_weights"))
    meeting = max(log.index(entry) for entry in ("open for 2", "join", "r0 join_transfer", "r1 join_transfer"))
    assert meeting < sending
    assert "buckets" not in log and not [entry for entry in log if entry.endswith("load_bucket")]


@pytest.mark.parametrize("verb", ["join_transfer", "receive_weights"])
async def test_one_dead_worker_costs_the_others_a_second_attempt_without_it(verb: str) -> None:
    """Where one is missing in a collective, the others' fails with it."""
    log: list[str] = []
    dead = Receiver("r0", log, fail={verb: EngineDead("r0: killed")})
    alive = Receiver("r1", log, fail={verb: WeightUpdateError("the transfer broke off")})
    sender = Sender(log, breaks=("the transfer broke off",) if verb == "receive_weights" else ())
    result = await publisher(sender, dead, alive).publish(5)
    assert result.verified_workers == 1 and alive.serves == 5
    assert dead.died == "r0: killed" and not alive.died and not alive.quarantined
    assert [entry for entry in log if entry.startswith("open")] == ["open for 2", "open for 1"]


async def test_a_worker_that_joined_a_transfer_that_did_not_come_about_is_tried_again_not_given_up() -> None:
    log: list[str] = []
    sinks = [Receiver("r0", log), Receiver("r1", log)]
    result = await publisher(Sender(log, absent="the rendezvous did not finish within 1 s"), *sinks).publish(5)
    assert result.verified_workers == 2
    assert log.count("send") == 1 and log.count("r0 receive_weights") == 1
    assert not [sink for sink in sinks if sink.died or sink.quarantined]


async def test_a_worker_that_hangs_in_the_transfer_is_given_up_and_the_others_serve() -> None:
    log: list[str] = []
    hung = Receiver("r0", log, hang="receive_weights")
    other = Receiver("r1", log, fail={"receive_weights": WeightUpdateError("the transfer did not finish within 1 s")})
    sender = Sender(log, breaks=("the transfer did not finish within 1 s",))
    made = publisher(sender, hung, other)
    hung_pings = hung._do

    async def answers_no_more(verb: str) -> None:
        if verb == "ping" and "r0 receive_weights" in log:
            await asyncio.sleep(3600)
        await hung_pings(verb)

    hung._do = answers_no_more
    result = await made.publish(5)
    assert result.verified_workers == 1 and other.serves == 5
    assert hung.died.startswith("r0 did not finish health check within sync.timeout_s=0.2 s")


@pytest.mark.parametrize("what", ["join", "send"])
async def test_a_learner_that_hangs_is_a_failure_of_the_policy(what: str) -> None:
    log: list[str] = []
    verb = "rendezvous" if what == "join" else "broadcast"
    with pytest.raises(RoleError, match=rf"policy.*{verb}.*no answer within sync.timeout_s=0\.2 s"):
        await publisher(Sender(log, slow=what), Receiver("r0", log)).publish(5)


async def test_adapters_alone_go_through_the_store_and_all_weights_by_broadcast() -> None:
    log: list[str] = []
    sink = Receiver("r0", log)
    made = publisher(Sender(log), sink, adapters_only=True)
    await made.publish(5)
    await made.publish(6)
    assert sink.sent == ["whole", "adapters"] and sink.serves == 6
    assert log.count("send") == 1 and log.count("r0 load_bucket") == 2
