"""A step's groups over several replicas: who scores what, and what becomes of the work of one that fails. No Ray.

pieces ──► free replica ──► outcomes
  ▲             │ fails: another replica takes the piece, at most MAX_ATTEMPTS in all
  └─────────────┘          then its samples are named failures
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from raylign.data.types import RewardFailure, RewardOutcome, RolloutMeta
from raylign.rollout.interfaces import GroupHandle

MAX_ATTEMPTS = 2
"""Replicas that may fail on a piece before its samples are failures: it may be the piece's own fault."""

MAX_RETURNS = 3
"""Times a replica may come back within one step; one that dies again and again does no work."""

Score = Callable[[Sequence[GroupHandle]], Awaitable[list[RewardOutcome]]]
"""One replica: groups in, one outcome a completion out. Raises ReplicaDown or PieceRefused."""

Ready = Callable[[], Awaitable[None]]
"""Returns when the replica can serve, at once for one that has not failed. Raises ReplicaDown when it never will."""


class ReplicaDown(RuntimeError):
    """The replica takes no more work in this step; the message says which and why."""


class PieceRefused(RuntimeError):
    """The replica failed on this piece and lives; the message says which and why."""


@dataclass(slots=True)
class _Piece:
    """Groups that go to a replica together."""

    numbers: tuple[int, ...]
    failures: list[str] = field(default_factory=list)


async def dispatch(
    groups: Sequence[GroupHandle],
    replicas: Sequence[tuple[Score, Ready]],
    *,
    piece_tokens: int,
    timeout_s: float,
) -> list[RewardOutcome]:
    """One outcome a completion, in order. Never raises for a replica's or a sample's failure.

    A replica that goes down is waited for as long as work is left and time remains: when it is the only one, its
    restart is the step's only hope, and when it is not, nobody waits for it.
    """
    step = _Step(groups, piece_tokens)
    serving = asyncio.gather(*(_serve(score, ready, step) for score, ready in replicas))
    settled = asyncio.create_task(step.settled())
    try:
        both: list[asyncio.Future[Any]] = [serving, settled]
        done, _ = await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        serving.cancel()
        settled.cancel()
    if serving in done:
        serving.result()  # an error that is neither of the two above is a bug, not a failed reward
    return step.outcomes("no reward replica is left" if done else f"no score within reward.timeout_s={timeout_s:g} s")


async def _serve(score: Score, ready: Ready, step: _Step) -> None:
    """Keep one replica busy until nothing is left for it, through its restarts."""
    for _ in range(1 + MAX_RETURNS):
        try:
            await ready()
        except ReplicaDown:
            return
        if await _work(score, step):
            return


async def _work(score: Score, step: _Step) -> bool:
    """True when nothing is left, False when the replica went down."""
    while (piece := await step.take()) is not None:
        try:
            outcomes = await score([step.groups[g] for g in piece.numbers])
        except PieceRefused as error:
            await step.give_back(piece, str(error))
        except ReplicaDown as error:
            await step.give_back(piece, str(error))
            return False
        else:
            await step.finish(piece, outcomes)
    return True


class _Step:
    """The pieces that wait, run and are done."""

    def __init__(self, groups: Sequence[GroupHandle], piece_tokens: int) -> None:
        self.groups = tuple(groups)
        self._waiting = deque(_cut(groups, piece_tokens))
        self._running = 0
        self._done: dict[int, list[RewardOutcome]] = {}
        self._reasons: dict[int, str] = {}
        self._changed = asyncio.Condition()

    async def take(self) -> _Piece | None:
        """The next piece; None when all are done. Waits while a running one may still come back."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting or not self._running)
            if not self._waiting:
                return None
            self._running += 1
            return self._waiting.popleft()

    async def settled(self) -> None:
        """Returns when every piece is done or has failed for good."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._waiting and not self._running)

    async def give_back(self, piece: _Piece, reason: str) -> None:
        """Let another replica try, unless enough have."""
        piece.failures.append(reason)
        for number in piece.numbers:
            self._reasons[number] = "; ".join(piece.failures)
        async with self._changed:
            self._running -= 1
            if len(piece.failures) < MAX_ATTEMPTS:
                self._waiting.append(piece)
            self._changed.notify_all()

    async def finish(self, piece: _Piece, outcomes: Sequence[RewardOutcome]) -> None:
        """Keep a piece's outcomes by group. Raises ValueError when they are not one a completion."""
        rest = list(outcomes)
        for number in piece.numbers:
            metas = self.groups[number].metas
            mine, rest = rest[: len(metas)], rest[len(metas) :]
            if [o.key for o in mine] != [m.key for m in metas]:
                raise ValueError(
                    f"a reward replica answered for {[o.key for o in mine]}, requested were {_keys(metas)}"
                )
            self._done[number] = mine
        async with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def outcomes(self, otherwise: str) -> list[RewardOutcome]:
        """Everything in order; what has no outcome fails with the reasons of its attempts, or `otherwise`."""
        result: list[RewardOutcome] = []
        for number, group in enumerate(self.groups):
            reason = self._reasons.get(number, otherwise)
            result += self._done.get(number) or [RewardFailure(m.key, reason) for m in group.metas]
        return result


def _cut(groups: Sequence[GroupHandle], piece_tokens: int) -> list[_Piece]:
    """Consecutive groups of about `piece_tokens`, the longest pieces first: the last to finish is then a short one."""
    pieces: list[tuple[int, _Piece]] = []
    numbers: list[int] = []
    tokens = 0
    for number, group in enumerate(groups):
        size = sum(meta.num_tokens for meta in group.metas)
        if numbers and tokens + size > piece_tokens:
            pieces.append((tokens, _Piece(tuple(numbers))))
            numbers, tokens = [], 0
        numbers.append(number)
        tokens += size
    if numbers:
        pieces.append((tokens, _Piece(tuple(numbers))))
    return [piece for _, piece in sorted(pieces, key=lambda p: -p[0])]


def _keys(metas: Sequence[RolloutMeta]) -> list[object]:
    return [m.key for m in metas]
