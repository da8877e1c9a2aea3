"""Preference pairs cut into optimizer steps, in seeded order, and the held-out pairs as one shard. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data.batching import shard
from data.preferences import PairExample, PairSet, pair_batch
from data.sampler import EpochSampler
from data.types import PairBatch, RankShard


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """How one optimizer step is cut."""

    num_ranks: int
    pairs_per_update: int
    micro_batch_tokens: int
    seed: int
    shuffle: bool


class PairFeed:
    """Draws updates without end; `state` is the position between two of them."""

    def __init__(
        self, train: PairSet, held_out: PairSet | None, settings: FeedSettings, state: Mapping[str, int | str]
    ) -> None:
        """`state`: empty for a new run. Raises DataError when the rows are not those of `state`."""
        self._pairs, self._held_out, self._settings = train.pairs, held_out, settings
        size = len(train.pairs)
        if state:
            self._sampler = EpochSampler.from_state(state, size=size, data_hash=train.digest)
        else:
            self._sampler = EpochSampler(size, seed=settings.seed, shuffle=settings.shuffle, data_hash=train.digest)

    def next_update(self) -> list[RankShard[PairBatch]]:
        """One optimizer step's shard for each rank."""
        drawn = self._sampler.next_batch(self._settings.pairs_per_update)
        return self._shards([self._pairs[index] for _, index in drawn], self._settings.pairs_per_update)

    def held_out(self) -> list[RankShard[PairBatch]]:
        """All held-out pairs as one window a rank; empty without a held-out set."""
        if self._held_out is None:
            return []
        return self._shards(self._held_out.pairs, len(self._held_out.pairs))

    def state(self) -> Mapping[str, int | str]:
        """Position, for the checkpoint."""
        return self._sampler.state()

    def _shards(self, pairs: tuple[PairExample, ...] | list[PairExample], window: int) -> list[RankShard[PairBatch]]:
        return shard(
            pair_batch(pairs),
            num_ranks=self._settings.num_ranks,
            units_per_update=window,
            micro_batch_tokens=self._settings.micro_batch_tokens,
            seed=self._settings.seed,
            epochs=1,
        )
