"""What is said when a learner's card is full: who, doing what, and which settings help. CUDA's words name none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from raylign.cluster.rank import RankInfo
from raylign.data.types import TokenBatch


class CardMemoryError(RuntimeError):
    """A card has no room for what a role was asked to compute."""


@contextmanager
def room_on_card(info: RankInfo, batches: Iterable[TokenBatch], *, trains: bool) -> Iterator[None]:
    """Raises CardMemoryError in place of torch.OutOfMemoryError. `batches`: what is computed, one at a time."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        role, tokens = info.role, max((batch.num_tokens for batch in batches), default=0)
        others = f", set {role}.gradient_checkpointing=true, or give it more ranks under zero_stage=3" if trains else ""
        peak = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at the peak" if torch.cuda.is_available() else ""
        raise CardMemoryError(
            f"{role} rank {info.rank}: its card has no memory left ({tokens:,} tokens in the largest "
            f"micro-batch{peak}); lower {role}.micro_batch_tokens{others} "
            f"(`raylign plan` estimates each): {str(error).partition('. ')[0]}"
        ) from error
