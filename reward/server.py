"""A reward replica as a Ray actor. The facade in front of the replicas is reward/pool.py.

A replica gathers what concurrent calls bring until it has `micro_batch_tokens`, or nothing came for a moment, and
scores it in one go.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from raylign.cluster.pages import KeptPages
from raylign.cluster.rank import RankInfo
from raylign.conf.schema import Device, RewardConfig
from raylign.data.types import RewardOutcome, RolloutGroup
from raylign.reward.interfaces import ModelLost
from raylign.reward.scorer import ComposedScorer
from raylign.reward.sources import RewardSources

logger = logging.getLogger(__name__)

GATHER_S = 0.005
"""How long a replica waits for more work before it scores a batch that is not full."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One caller's groups, waiting in a replica."""

    groups: list[RolloutGroup]
    num_tokens: int
    answer: asyncio.Future[list[RewardOutcome]]


class RewardServer:
    """One replica. An async actor: calls overlap, scoring runs one batch at a time in a thread."""

    def __init__(self, info: RankInfo, config: RewardConfig, device: Device, sources: RewardSources) -> None:
        info.open_log()
        self._sources = sources
        self._config = config
        self._device = device
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._serving: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Load the model. Idempotent."""
        async with self._starting:
            if self._serving is None:
                scorer = await asyncio.to_thread(ComposedScorer, self._config, self._device, self._sources)
                self._serving = asyncio.create_task(self._serve(scorer))

    async def score(self, refs: Sequence[ray.ObjectRef]) -> list[RewardOutcome]:
        """One raw outcome a completion of the groups behind `refs`, in order."""
        await self.start()
        async with asyncio.timeout(self._config.timeout_s):
            groups = list(await asyncio.gather(*refs))
            answer: asyncio.Future[list[RewardOutcome]] = asyncio.get_running_loop().create_future()
            self._queue.put_nowait(_Request(groups, _num_tokens(groups), answer))
            return await answer

    async def _serve(self, scorer: ComposedScorer) -> None:
        pages = KeptPages()
        while True:
            batch = await self._gather()
            if not await _answer(scorer, batch) and len(batch) > 1:
                for request in batch:  # one of them is bad: the others must not fail with it
                    await _answer(scorer, [request])
            pages.after_step()

    async def _gather(self) -> list[_Request]:
        batch = [await self._queue.get()]
        while sum(request.num_tokens for request in batch) < self._config.micro_batch_tokens:
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), GATHER_S))
            except TimeoutError:
                break
        return batch


def _num_tokens(groups: Sequence[RolloutGroup]) -> int:
    return sum(len(g.prompt.token_ids) + len(c.response_ids) for g in groups for c in g.completions)


async def _answer(scorer: ComposedScorer, batch: Sequence[_Request]) -> bool:
    """Score a batch and tell its callers. False when it failed and its callers may be asked one by one."""
    groups = [group for request in batch for group in request.groups]
    [result] = await asyncio.gather(asyncio.to_thread(scorer.score, groups), return_exceptions=True)
    if isinstance(result, ModelLost):  # no later call could be answered: the pool starts another process
        logger.error("%s: the replica ends", result)
        os._exit(1)
    if isinstance(result, BaseException):
        if len(batch) == 1 and not batch[0].answer.done():
            batch[0].answer.set_exception(result)
        return False
    for request in batch:
        size = sum(len(group.completions) for group in request.groups)
        if not request.answer.done():  # its caller may have given up
            request.answer.set_result(result[:size])
        result = result[size:]
    return True
