"""Rows drawn in proportion to weights: sources by their shares, rows by what they taught lately. Resumable at any step.

Each row is due once in every stretch of the queue's time that is 1 / weight long, at a place in it that a keyed hash
says (stratified sampling). So a row's share of the draws is its weight's share of all weights, to one draw; with equal
weights every row comes once an epoch, shuffled. A source's turn comes when it is furthest behind its share, so sources
are never further than one draw apart from theirs.

What a row taught is known when its step is finished. A draw of step s reads the steps up to s - lag and no other, also
where more are known, so generating ahead or resuming gives the same order. The state is seed, settings and what every
finished step taught, one byte a draw: a resumed sampler draws again from the beginning, in memory.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

from raylign.conf.errors import DataError
from raylign.data.draw_weights import DrawSettings, refuse_other_settings, refuse_shares, weight_of

_LEVELS = 250
"""Solve rates are kept in steps of 1 / 250."""
_UNKNOWN = 255
"""A draw without any reward."""
_KIND = "weighted"


@dataclass(slots=True)
class _Row:
    index: int
    due: float  # in the queue's time
    end: float  # of the stretch that `due` lies in
    weight: float = 1.0
    rate: float | None = None  # half of it the last group's, a quarter the one before's, ...
    draws: int = 0
    version: int = 0  # of its entry in the heap


@dataclass(slots=True)
class _Queue:
    """The rows of one source by when they are due."""

    name: str
    share: float
    heap: list[tuple[float, int, int]] = field(default_factory=list)  # due, index, version
    now: float = 0.0
    drawn: int = 0


class WeightedSampler:
    """Draws `(n, index)`: row `index` for the n-th time, from 0."""

    def __init__(
        self, sources: Sequence[str], settings: DrawSettings, *, seed: int, shuffle: bool, data_hash: str
    ) -> None:
        """`sources`: of each row. Raises DataError for shares that do not fit the rows' sources."""
        if not sources:
            raise DataError("there are no rows to draw from.")
        refuse_shares(settings.shares, sources)
        self._settings, self._seed, self._shuffle, self._data_hash = settings, seed, shuffle, data_hash
        names = sorted(name for name, share in settings.shares.items() if share) or [""]
        total = sum(settings.shares.values()) or 1.0
        self._queues = {name: _Queue(name, settings.shares.get(name, 1.0) / total) for name in names}
        self._source = [source if settings.shares else "" for source in sources]
        self._rows = [_Row(index, self._place(index, 0, len(sources)), 1.0) for index in range(len(sources))]
        for row, source in zip(self._rows, self._source, strict=True):
            if source in self._queues:
                self._queues[source].heap.append((row.due, row.index, 0))
        for queue in self._queues.values():
            heapq.heapify(queue.heap)
        self._begun: list[list[tuple[int, int]]] = []  # the draws of each step so far
        self._taught: list[bytes] = []  # by finished step, one byte a draw
        self._packer, self._packed = zlib.compressobj(), b""  # the same, with the length before each step

    def begin(self) -> None:
        """The next step: what the step `lag` before it taught counts from here on.

        Raises ValueError when that is not known yet.
        """
        step = len(self._begun) + 1 - self._settings.lag
        if step > len(self._taught):
            raise ValueError(f"step {len(self._begun) + 1} is drawn before step {step} is finished")
        if step > 0:
            for (_, index), level in zip(self._begun[step - 1], self._taught[step - 1], strict=True):
                self._learn(self._rows[index], level)
        self._begun.append([])

    def next_batch(self, n: int) -> list[tuple[int, int]]:
        """The next `n` draws of the step that was begun. Raises DataError when max_draws leaves nothing to draw."""
        return [self._draw() for _ in range(n)]

    def teach(self, step: int, rates: Sequence[float | None]) -> None:
        """What step `step`, the next to finish, taught: the solve rate of every draw, in the order of draws.

        None: no reward was had. A step that the state held already is not counted again.
        """
        if step <= len(self._taught):
            return
        if step != len(self._taught) + 1 or len(rates) != len(self._begun[step - 1]):
            raise ValueError(f"step {step} with {len(rates)} draws is not the next one, or has other draws")
        self._note(bytes(_UNKNOWN if rate is None else round(rate * _LEVELS) for rate in rates))

    def finished(self, step: int) -> list[tuple[int, int, float | None]]:
        """Number, row and solve rate of each draw of a finished step."""
        levels = self._taught[step - 1]
        return [
            (number, index, None if level == _UNKNOWN else level / _LEVELS)
            for (number, index), level in zip(self._begun[step - 1], levels, strict=True)
        ]

    def state(self) -> Mapping[str, int | str]:
        """After the last finished step, for the checkpoint; draws ahead of it are not in it."""
        packed = self._packed + self._packer.copy().flush()
        return {
            "order": _KIND,
            "settings": json.dumps(asdict(self._settings), sort_keys=True),
            "size": len(self._rows),
            "seed": self._seed,
            "shuffle": int(self._shuffle),
            "data_hash": self._data_hash,
            "taught": base64.b64encode(packed).decode(),
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, int | str], sources: Sequence[str], settings: DrawSettings, *, data_hash: str
    ) -> Self:
        """Go on after the last finished step. Raises DataError when the data or the settings have changed."""
        if state["data_hash"] != data_hash or int(state["size"]) != len(sources):
            raise DataError(
                f"the data have changed since the checkpoint ({state['size']} rows with hash {state['data_hash']} "
                f"then, {len(sources)} rows with hash {data_hash} now); resume with the same data, or start a new run."
            )
        refuse_other_settings(json.loads(str(state["settings"])), settings)
        sampler = cls(sources, settings, seed=int(state["seed"]), shuffle=bool(state["shuffle"]), data_hash=data_hash)
        log = zlib.decompress(base64.b64decode(str(state["taught"])))
        at = 0
        while at < len(log):
            (size,) = struct.unpack_from("<I", log, at)
            sampler.begin()
            sampler.next_batch(size)
            sampler._note(log[at + 4 : at + 4 + size])
            at += 4 + size
        return sampler

    def _note(self, levels: bytes) -> None:
        self._taught.append(levels)
        self._packed += self._packer.compress(struct.pack("<I", len(levels)) + levels)

    def _draw(self) -> tuple[int, int]:
        queue = self._behind()
        while queue.heap:
            due, index, version = heapq.heappop(queue.heap)
            row = self._rows[index]
            if row.version == version:
                queue.now, queue.drawn = due, queue.drawn + 1
                drawn = (self._drawn(row, queue), index)
                self._begun[-1].append(drawn)
                return drawn
        where = f"of {queue.name} " if queue.name else ""
        raise DataError(
            f"data.curriculum.max_draws={self._settings.max_draws}: every prompt {where}has been drawn so often; raise "
            "it, set it to 0, or give more prompts."
        )

    def _behind(self) -> _Queue:
        """The source furthest behind its share, the first by name of equals."""
        total = 1 + sum(queue.drawn for queue in self._queues.values())
        return max(self._queues.values(), key=lambda queue: queue.share * total - queue.drawn)

    def _drawn(self, row: _Row, queue: _Queue) -> int:
        number, row.draws = row.draws, row.draws + 1
        row.version += 1
        if row.draws != self._settings.max_draws:
            width = 1 / row.weight
            row.due, row.end = row.end + width * self._place(row.index, row.draws, len(self._rows)), row.end + width
            heapq.heappush(queue.heap, (row.due, row.index, row.version))
        return number

    def _learn(self, row: _Row, level: int) -> None:
        """The wait that is left grows or shrinks with the weight."""
        if level == _UNKNOWN:
            return
        row.rate = level / _LEVELS if row.rate is None else (row.rate + level / _LEVELS) / 2
        weight = weight_of(row.rate, self._settings.min_weight)
        if weight == row.weight or row.draws == self._settings.max_draws > 0:
            return
        queue, scale = self._queues[self._source[row.index]], row.weight / weight
        row.due, row.end = (queue.now + (time - queue.now) * scale for time in (row.due, row.end))
        row.weight, row.version = weight, row.version + 1
        heapq.heappush(queue.heap, (row.due, row.index, row.version))

    def _place(self, index: int, number: int, size: int) -> float:
        """Where in its stretch a row is due the `number`-th time, in [0, 1): the same on any machine."""
        if not self._shuffle:
            return index / size
        text = index.to_bytes(8, "little") + number.to_bytes(8, "little")
        drawn = hashlib.blake2b(text, digest_size=8, key=f"{self._seed}".encode()).digest()
        return (int.from_bytes(drawn, "little") >> 11) / (1 << 53)
