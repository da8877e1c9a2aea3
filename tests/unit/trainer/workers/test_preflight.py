"""Which ranks try which links, what is said of one that carries nothing, and that a working one is left behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from raylign.cluster.placement import Slot
from raylign.conf.errors import ClusterError
from raylign.rollout.broadcast import RENDEZVOUS
from raylign.rollout.interfaces import TransferLink
from raylign.trainer.workers import preflight
from raylign.trainer.workers.preflight import PairMeeting, node_pairs, prove_links


def slots(*nodes: str) -> list[Slot]:
    return [Slot("policy", rank, node, 1.0, 0.0, False) for rank, node in enumerate(nodes)]


class Group:
    """A WorkerGroup whose rank `silent` meets nobody."""

    role = "policy"

    def __init__(self, silent: int = -1) -> None:
        self.silent, self.met = silent, []
        self.opened = TransferLink("10.0.0.7", 1, 1, 1, timeout_s=1, bucket_bytes=1)

    async def call_rank(self, rank: int, each, *, verb: str, timeout_s: float) -> object:
        return each(self._Actor(self, rank), rank)

    class _Actor:
        def __init__(self, group: Group, rank: int) -> None:
            self.open_pair = self._call(lambda: group.opened)
            self.meet_pair = self._call(lambda link=None: group.meet(rank))

        @staticmethod
        def _call(work):
            return type("Method", (), {"remote": staticmethod(work)})()

    def meet(self, rank: int) -> str:
        self.met.append(rank)
        return "the rendezvous did not finish within 60 s" if rank == self.silent else ""


def test_every_two_nodes_are_tried_once_by_their_first_ranks() -> None:
    assert node_pairs(slots("a", "a", "a")) == []
    assert node_pairs(slots("a", "a", "b", "c", "b")) == [(0, 2), (0, 3), (2, 3)]


async def test_nodes_that_do_not_reach_each_other_are_named_with_the_setting_that_helps() -> None:
    group = Group(silent=2)
    with pytest.raises(ClusterError) as told:
        await prove_links(group, slots("a", "a", "b", "c"), 5)  # type: ignore[arg-type]
    said = str(told.value)
    assert "policy: rank 0 on node a (10.0.0.7) and rank 2 on node b do not reach each other" in said
    assert "did not finish within 60 s" in said and "cluster.env={NCCL_SOCKET_IFNAME: eth0" in said
    quiet = Group()
    await prove_links(quiet, slots("a", "b"), 5)  # type: ignore[arg-type]
    assert quiet.met == [0, 1]


def test_two_ranks_meet_and_one_that_is_alone_says_so_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    cpu, one, other = torch.device("cpu"), PairMeeting(), PairMeeting()
    link = one.open("127.0.0.1")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(one.meet, cpu)
        assert other.meet(cpu, link) == "" and waiting.result(60) == ""
    monkeypatch.setattr(preflight, "PAIR_TIMEOUT_S", 0.3)
    one.open("127.0.0.1")
    assert one.meet(cpu).startswith(RENDEZVOUS)
