"""What waits at a reward server, scored together in a thread, one batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web
from raylign.data.types import Message
from raylign.reward.text_scorer import Scorable

MAX_WAITING = 8192  # sequences


class Scoring(Protocol):
    """What a TextScorer does."""

    def conversation(self, messages: Sequence[Message], answer: str, *, finished: bool) -> Scorable: ...

    def rendered(self, text: str, prompt: str = "") -> Scorable: ...

    def score(self, sequences: Sequence[Scorable]) -> list[float]: ...


class Busy(RuntimeError):
    """More waits already than may."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    sequences: tuple[Scorable, ...]
    answer: asyncio.Future[list[float]]


class Batcher:
    """Scores one batch at a time in a thread, of all requests that came meanwhile."""

    def __init__(self, scorer: Scoring, max_batch: int) -> None:
        self._scorer = scorer
        self._max_batch = max_batch
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._num_waiting = 0

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """For the life of the server."""
        task = asyncio.create_task(self._work())
        yield
        task.cancel()

    async def submit(self, sequences: Sequence[Scorable]) -> list[float]:
        """Raises Busy."""
        if not sequences:
            return []
        if self._num_waiting + len(sequences) > MAX_WAITING:
            raise Busy
        waiting = _Waiting(tuple(sequences), asyncio.get_running_loop().create_future())
        self._num_waiting += len(sequences)
        self._queue.put_nowait(waiting)
        return await waiting.answer

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty() and sum(len(w.sequences) for w in batch) < self._max_batch:
                batch.append(self._queue.get_nowait())
            self._num_waiting -= sum(len(w.sequences) for w in batch)
            batch = [w for w in batch if not w.answer.done()]  # who asked may have gone
            flat = [sequence for waiting in batch for sequence in waiting.sequences]
            try:
                scores = await asyncio.to_thread(self._scorer.score, flat)
            except Exception as error:
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                continue
            for waiting in batch:
                mine, scores = scores[: len(waiting.sequences)], scores[len(waiting.sequences) :]
                if not waiting.answer.done():
                    waiting.answer.set_result(mine)
