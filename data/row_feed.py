"""A training set cut into optimizer steps, in seeded order, and each held-out set as one shard a rank. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raylign.data.batching import shard
from raylign.data.row_kinds import TrainRows
from raylign.data.sampler import EpochSampler
from raylign.data.types import RankShard

_TOKENS = "num_tokens"


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """How one optimizer step is cut."""

    num_ranks: int
    rows_per_update: int
    micro_batch_tokens: int
    seed: int
    shuffle: bool


class RowFeed:
    """Draws updates without end; `state` is the position between two of them."""

    def __init__(
        self,
        train: TrainRows,
        held_out: Mapping[str, TrainRows],
        settings: FeedSettings,
        state: Mapping[str, int | str],
    ) -> None:
        """`state`: empty for a new run. Raises DataError when the rows are not those of `state`."""
        self._train, self._held_out, self._settings = train, held_out, settings
        size = len(train)
        if state:
            self._sampler = EpochSampler.from_state(state, size=size, data_hash=train.digest)
        else:
            self._sampler = EpochSampler(size, seed=settings.seed, shuffle=settings.shuffle, data_hash=train.digest)
        self._num_tokens = int(state.get(_TOKENS, 0))

    def next_update(self) -> list[RankShard[Any]]:
        """One optimizer step's shard for each rank."""
        drawn = self._sampler.next_batch(self._settings.rows_per_update)
        batch = self._train.batch([index for _, index in drawn])
        self._num_tokens += batch.tokens.num_tokens
        return self._shards(batch, self._settings.rows_per_update)

    def held_out(self) -> dict[str, list[RankShard[Any]]]:
        """Each held-out set, by name, as one window a rank."""
        return {name: self._shards(rows.batch(range(len(rows))), len(rows)) for name, rows in self._held_out.items()}

    def state(self) -> Mapping[str, int | str]:
        """Position, and the tokens drawn so far, for the checkpoint."""
        return {**self._sampler.state(), _TOKENS: self._num_tokens}

    def _shards(self, batch: Any, window: int) -> list[RankShard[Any]]:
        return shard(
            batch,
            num_ranks=self._settings.num_ranks,
            units_per_update=window,
            micro_batch_tokens=self._settings.micro_batch_tokens,
            seed=self._settings.seed,
        )
