"""What a model needs to know where several ranks compute one batch together (trainer/engine/sequence_ranks.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""query `[M, H, D]`, key `[M, G, D]`, value `[M, G, E]` -> `[M, H, E]`."""


class SequenceSplit(Protocol):
    """One rank's place among those that each compute L of a batch's M tokens."""

    @property
    def rank(self) -> int:
        """Among them."""
        ...

    def own(self, count: int, device: torch.device) -> Tensor:
        """Which of the M = `count` tokens this rank computes, `[L]`; the last ones may be fillers."""
        ...

    def place(self, rows: Tensor, count: int) -> Tensor:
        """Where rows of the M tokens are among this rank's L; outside [0, L) for another rank's."""
        ...

    def attention(self, query: Tensor, key: Tensor, value: Tensor, count: int, attend: Attend) -> Tensor:
        """`attend` on all M tokens, from and to this rank's: query `[L, H, D]` -> `[L, H, E]`. Collective."""
        ...

    def joined(self, own: Tensor, count: int) -> Tensor:
        """This rank's `[L, ...]` with all others': `[M, ...]`. Its gradient is the own part's. Collective."""
        ...

    def added(self, own: Tensor) -> Tensor:
        """The sum over ranks, of which each has filled in other places. Its gradient is passed on. Collective."""
        ...
