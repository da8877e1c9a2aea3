"""From one score a sequence to a reward for each token."""

from __future__ import annotations

import torch
from raylign.data.types import TokenBatch
from raylign.trainer.functional.segments import last_trained, sequence_ids, sequence_sum
from torch import Tensor


def token_rewards(scores: Tensor, tokens: TokenBatch, kl_penalty: Tensor | None, early: Tensor | None = None) -> Tensor:
    """The score on the last response token, minus `kl_penalty` (coefficient times KL, `[N]`) on each. [N]

    `scores` is `[S]`. `early`, `[N]`: parts of the scores that were received on earlier tokens; the last one has the
    rest, so that a sequence's rewards sum to its score. A sequence without a response token gets nothing.
    """
    if early is not None:
        scores = scores - sequence_sum(early, tokens).to(scores.dtype)
    rewards = torch.where(last_trained(tokens), scores[sequence_ids(tokens)], 0)
    if early is not None:
        rewards = rewards + torch.where(tokens.response_mask, early, 0).to(rewards.dtype)
    if kl_penalty is None:
        return rewards
    return rewards - torch.where(tokens.response_mask, kl_penalty, 0).to(rewards.dtype)
