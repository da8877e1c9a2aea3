"""The prompt set as the online loop draws from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raylign.data.prompts import PromptSet
from raylign.data.sampler import EpochSampler
from raylign.data.types import Prompt
from raylign.trainer.loops.interfaces import PromptDraw


class SampledPrompts:
    """A loops.PromptSource over a loaded set."""

    def __init__(self, prompts: Sequence[Prompt], sampler: EpochSampler) -> None:
        self._prompts = prompts
        self._sampler = sampler

    @classmethod
    def open(cls, loaded: PromptSet, *, seed: int, shuffle: bool, state: Mapping[str, int | str]) -> SampledPrompts:
        """From the start (empty `state`) or where `state` stopped. Raises DataError when the data have changed."""
        size, digest = len(loaded.prompts), loaded.digest
        if state:
            return cls(loaded.prompts, EpochSampler.from_state(state, size=size, data_hash=digest))
        return cls(loaded.prompts, EpochSampler(size, seed=seed, shuffle=shuffle, data_hash=digest))

    def next_batch(self, n: int) -> list[PromptDraw]:
        """The next `n` prompts of the seeded order."""
        return [PromptDraw(epoch, self._prompts[index]) for epoch, index in self._sampler.next_batch(n)]

    def state(self) -> Mapping[str, int | str]:
        """Position, for the checkpoint."""
        return self._sampler.state()
