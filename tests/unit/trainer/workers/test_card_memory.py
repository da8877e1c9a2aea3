"""A full card is told with the role, the size of what it computed and the settings that help."""

from __future__ import annotations

import pytest
import torch
from raylign.cluster.rank import RankInfo
from raylign.data.types import TokenBatch
from raylign.trainer.workers.card_memory import CardMemoryError, room_on_card

INFO = RankInfo("critic", 2, 4)
BATCHES = [TokenBatch.from_sequences([[1] * n], [[True] * n]) for n in (30, 1200, 7)]


@pytest.mark.parametrize("trains", [True, False])
def test_the_message_has_role_rank_tokens_and_a_setting_for_each_remedy(trains: bool) -> None:
    with pytest.raises(CardMemoryError) as told, room_on_card(INFO, iter(BATCHES), trains=trains):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total")
    said = str(told.value)
    assert said.startswith("critic rank 2: its card has no memory left (1,200 tokens in the largest micro-batch")
    assert "lower critic.micro_batch_tokens" in said and said.endswith("CUDA out of memory")
    assert ("critic.gradient_checkpointing=true" in said) == trains


def test_other_errors_pass_through() -> None:
    with pytest.raises(ValueError, match="of another kind"), room_on_card(INFO, BATCHES, trains=True):
        raise ValueError("of another kind")
