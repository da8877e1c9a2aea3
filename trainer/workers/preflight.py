"""Whether the nodes of a learner reach each other, tried by pairs before a model is loaded.

What fails later is a collective of all ranks, whose error names neither the two nodes between which nothing travels nor
the network interface that was taken.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from raylign.cluster.placement import Slot
from raylign.cluster.worker_group import WorkerGroup
from raylign.conf.errors import ClusterError
from raylign.rollout.broadcast import TransferGroup, open_link
from raylign.rollout.interfaces import TransferLink, WeightUpdateError

PAIR_TIMEOUT_S = 60.0
"""Of one pair; a network that works takes a second, NCCL's start included."""


class PairMeeting:
    """One rank's part: a group of two, of the kind that the learner's own will be, and one all-reduce in it."""

    def __init__(self) -> None:
        self._opened: tuple[TransferLink, dist.Store] | None = None

    def open(self, address: str) -> TransferLink:
        """Wait for another rank at `address` of this node."""
        self._opened = open_link(address, workers=1, ranks_per_worker=1, timeout_s=PAIR_TIMEOUT_S, bucket_bytes=1)
        return self._opened[0]

    def meet(self, device: torch.device, link: TransferLink | None = None) -> str:
        """Why the two did not meet within PAIR_TIMEOUT_S; empty when they did. `link`: of the one who waits."""
        store = None
        if link is None:
            assert self._opened is not None, "nobody waits here"
            (link, store), self._opened = self._opened, None
            rank = 0
        else:
            rank = link.first_rank
        group = TransferGroup(link, rank, device, store)
        try:
            group.meet()
        except WeightUpdateError as error:
            return str(error)
        group.abandon()
        return ""


def node_pairs(slots: Sequence[Slot]) -> list[tuple[int, int]]:
    """The first ranks of every two nodes."""
    first: dict[str, int] = {}
    for slot in sorted(slots, key=lambda s: s.rank):
        first.setdefault(slot.node_id, slot.rank)
    return list(itertools.combinations(first.values(), 2))


async def prove_links(group: WorkerGroup, slots: Sequence[Slot], timeout_s: float) -> None:
    """Every two nodes of a learner exchange something. Raises ClusterError naming two that do not."""
    for one, other in node_pairs(slots):
        link = await group.call_rank(one, lambda a, _: a.open_pair.remote(), verb="start", timeout_s=timeout_s)
        said = await asyncio.gather(
            group.call_rank(one, lambda a, _: a.meet_pair.remote(), verb="start", timeout_s=timeout_s),
            group.call_rank(other, partial(_met_at, link), verb="start", timeout_s=timeout_s),
        )
        if why := next(filter(None, said), ""):
            places = {slot.rank: slot.node_id for slot in slots}
            raise ClusterError(
                f"{group.role}: rank {one} on node {places[one]} ({link.address}) and rank {other} on node "
                f"{places[other]} do not reach each other: {why}; name the network interface that the nodes share: "
                '"cluster.env={NCCL_SOCKET_IFNAME: eth0, GLOO_SOCKET_IFNAME: eth0}"'
            )


def _met_at(link: TransferLink, actor: Any, _: int) -> Any:
    return actor.meet_pair.remote(link)
