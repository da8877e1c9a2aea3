"""The feeder's Ray shell: tokenised rows live in one actor, shards go to the ranks by reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from raylign.cluster import preloads
from raylign.cluster.pages import KeptPages
from raylign.cluster.runtime_env import RoleEnv
from raylign.cluster.worker_group import WorkerGroup
from raylign.conf.schema import Device
from raylign.data.row_feed import RowFeed
from raylign.rollout.interfaces import Ref


class FeederWorker:
    """The actor. Shards are put by it, so they live as long as it does."""

    def __init__(self) -> None:
        self._given: RowFeed | None = None
        self._pages = KeptPages()  # it may be the fork of a server whose allocator keeps them

    def begin(self, feed: RowFeed) -> None:
        """The rows, at the position to go on from."""
        self._given = feed

    def next_update(self) -> list[ray.ObjectRef]:
        """References to one RankShard a rank."""
        shards = [ray.put(one) for one in self._feed.next_update()]
        self._pages.after_step()
        return shards

    def held_out(self) -> dict[str, list[ray.ObjectRef]]:
        """References to one RankShard a rank, for each held-out set by name."""
        return {name: [ray.put(one) for one in shards] for name, shards in self._feed.held_out().items()}

    def state(self) -> Mapping[str, int | str]:
        """Position between two updates."""
        return self._feed.state()

    @property
    def _feed(self) -> RowFeed:
        assert self._given is not None, "the feeder was asked before it began"
        return self._given


class Feeder:
    """Facade: a loops.offline.Feeder, once it has begun. Its process starts when it is made, beside the learners'."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._worker = WorkerGroup.spawn(
            FeederWorker,
            role="feeder",
            options=[{"num_cpus": 0}],
            env_vars=[RoleEnv(Device.cpu, threads=1, borrow=preloads.LEARNER[0]).variables()],
            args=[()],
        )

    async def begin(self, feed: RowFeed) -> None:
        """The rows, at the position to go on from."""
        await self._call(lambda a, _: a.begin.remote(feed), "rows")

    async def next_update(self) -> list[Ref]:
        """One reference a rank."""
        return [Ref(ref) for ref in await self._call(lambda a, _: a.next_update.remote(), "next rows")]

    async def held_out(self) -> dict[str, list[Ref]]:
        """One reference a rank, for each held-out set by name."""
        sets = await self._call(lambda a, _: a.held_out.remote(), "held-out rows")
        return {name: [Ref(ref) for ref in refs] for name, refs in sets.items()}

    async def state(self) -> Mapping[str, int | str]:
        """Position, for the checkpoint."""
        return await self._call(lambda a, _: a.state.remote(), "data position")

    def stop(self) -> None:
        """Kill the actor."""
        self._worker.stop()

    async def _call(self, each: Any, verb: str) -> Any:
        return (await self._worker.call(each, verb=verb, timeout_s=self._timeout_s))[0]
