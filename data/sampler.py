"""The order in which rows are drawn: shuffled anew each epoch, resumable at any draw, each row once an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Self

from raylign.conf.errors import DataError


class EpochSampler:
    """Draws `(epoch, index)` without end. The order depends on seed, epoch and size alone, on any machine."""

    def __init__(self, size: int, *, seed: int, shuffle: bool, data_hash: str) -> None:
        """`data_hash` tags the position: it is only valid for the same rows. Raises DataError for an empty set."""
        if size < 1:
            raise DataError("there are no rows to draw from.")
        self._size = size
        self._seed = seed
        self._shuffle = shuffle
        self._data_hash = data_hash
        self._epoch = 0
        self._position = 0  # rows of this epoch already drawn; always below size
        self._order = self._order_of(0)

    @property
    def epoch(self) -> int:
        """The epoch the next row belongs to."""
        return self._epoch

    def next_batch(self, n: int) -> list[tuple[int, int]]:
        """The next `n` draws; a batch over the end of an epoch goes on with the next one."""
        drawn: list[tuple[int, int]] = []
        while len(drawn) < n:
            taken = self._order[self._position : self._position + n - len(drawn)]
            drawn += [(self._epoch, index) for index in taken]
            self._position += len(taken)
            if self._position == self._size:
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._order_of(self._epoch)
        return drawn

    def state(self) -> Mapping[str, int | str]:
        """Position and identity, for the checkpoint."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "size": self._size,
            "seed": self._seed,
            "shuffle": int(self._shuffle),
            "data_hash": self._data_hash,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, int | str], *, size: int, data_hash: str) -> Self:
        """Go on where `state` stopped, in its seed's order.

        Raises DataError when the data have changed: positions in other rows would train some twice and some never.
        """
        if state["data_hash"] != data_hash or int(state["size"]) != size:
            raise DataError(
                f"the data have changed since the checkpoint ({state['size']} rows with hash {state['data_hash']} "
                f"then, {size} rows with hash {data_hash} now); resume with the same data, or start a new run."
            )
        sampler = cls(size, seed=int(state["seed"]), shuffle=bool(state["shuffle"]), data_hash=data_hash)
        sampler._epoch, sampler._position = int(state["epoch"]), int(state["position"])
        sampler._order = sampler._order_of(sampler._epoch)
        return sampler

    def _order_of(self, epoch: int) -> list[int]:
        """A permutation by keyed hash: unlike a library's shuffle it is the same in every version of anything."""
        if not self._shuffle:
            return list(range(self._size))
        key = f"{self._seed}:{epoch}".encode()

        def rank(index: int) -> bytes:
            return hashlib.blake2b(index.to_bytes(8, "little"), digest_size=16, key=key).digest()

        return sorted(range(self._size), key=rank)
