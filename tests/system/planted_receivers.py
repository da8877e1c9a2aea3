"""Weight receivers with one bug each, planted in a real engine to show that verification catches it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raylign.rollout.vllm_extension import WeightReceiver
from torch import Tensor, nn


class StaleHead(WeightReceiver):
    """Forgets that the packed lm_head is a copy of the tied embedding."""

    def raylign_repack_head(self, model: nn.Module) -> None:
        """Do nothing."""


class SwapsInTheEngine(WeightReceiver):
    """Loads layer 0's query projection into layer 1 and the reverse, after everything arrived rightly."""

    def raylign_begin(self, tensors: list, tied: bool, columns: int, seed: int, adapters=()) -> None:
        """Wrap the observer's output, so that only what happens after arrival is wrong."""
        super().raylign_begin(tensors, tied, columns, seed, adapters)
        observe = self.raylign_transaction.observe

        def swapped(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
            other = {"layers.0.self_attn.q_proj": "layers.1.self_attn.q_proj"}
            other |= {new: old for old, new in other.items()}
            for name, tensor in observe(weights):
                hit = next((key for key in other if key in name), None)
                yield (name.replace(hit, other[hit]) if hit else name), tensor

        self.raylign_transaction.observe = swapped
