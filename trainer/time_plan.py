"""About how long each phase of an online step takes on GPUs, to see which one the others wait for. Pure; estimates.

A learner is bound by arithmetic, an engine that decodes by reading weights and cache. The shares of a card's peak that
are reached are assumptions written here, not measurements: the ratios between phases are the use of these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raylign.conf.schema import LearnerConfig, RolloutConfig
from raylign.trainer.memory_plan import ModelShape, item_bytes

TRAINING_SHARE = 0.35  # of the peak arithmetic
SCORING_SHARE = 0.45
DECODING_SHARE = 0.6  # of the peak bandwidth
STORE_BYTES_S = 1.0e9  # through the object store, digests included
NCCL_BYTES_S = 2.0e10
HOST_LINK_BYTES_S = 2.5e10  # a card's PCIe 5 link, pinned memory


@dataclass(frozen=True, slots=True)
class Card:
    """Published peaks of a GPU, dense bfloat16 (makers' data sheets)."""

    flops: float
    bytes_s: float


CARDS: Mapping[str, Card] = {
    "A100": Card(312e12, 2.0e12),
    "L40S": Card(362e12, 0.86e12),
    "H100": Card(989e12, 3.35e12),
    "H200": Card(989e12, 4.8e12),
    "B200": Card(2250e12, 8.0e12),
}


def card_named(name: str) -> Card | None:
    """The peaks of a device by the name its driver gives it; None for one that is not listed."""
    return next((card for known, card in CARDS.items() if known in name.upper()), None)


def training_flops(shape: ModelShape, tokens: float, *, recompute: bool) -> float:
    """Arithmetic of an update (2 a weight and token forward, 4 backward; frozen weights need half of the backward).

    Attention's own products are left out: 3 % of a 7B model at 2,048 tokens.
    """
    backward = 4 if shape.adapted == 0 else 2
    return tokens * shape.parameters * (2 + backward + (2 if recompute else 0))


def update_seconds(shape: ModelShape, learner: LearnerConfig, tokens: float, card: Card) -> float:
    """One pass of updates over `tokens`."""
    work = training_flops(shape, tokens, recompute=learner.gradient_checkpointing)
    return work / (learner.num_ranks * card.flops * TRAINING_SHARE)


def scoring_seconds(shape: ModelShape, cards: float, tokens: float, card: Card) -> float:
    """One forward pass over `tokens`."""
    return 2 * shape.parameters * tokens / (cards * card.flops * SCORING_SHARE)


def generation_seconds(shape: ModelShape, rollout: RolloutConfig, cache_tokens: int, card: Card) -> float:
    """All answers of a step at their greatest length: an upper bound."""
    length = rollout.max_new_tokens
    each = -(-rollout.prompts_per_step * rollout.samples_per_prompt // rollout.num_workers)
    at_once = max(1, min(each, rollout.max_concurrent, cache_tokens // rollout.max_model_len or 1))
    width, parallel = item_bytes(rollout.precision), rollout.tensor_parallel_size
    cached = at_once * (rollout.max_model_len - length / 2) * shape.kv_bytes(width, parallel)
    one_token = (shape.parameters * width / parallel + cached) / (card.bytes_s * DECODING_SHARE)
    return -(-each // at_once) * length * one_token
