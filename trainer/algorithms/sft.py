"""Supervised fine-tuning: next-token loss on the assistant's words only."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.conf.schema import AlgorithmConfig
from raylign.data.row_batches import TextBatch
from raylign.data.types import Denominators, RowKind, TokenOutputs
from raylign.trainer.algorithms.base import LossOutput, ModelKind, OfflineNeeds, Role
from raylign.trainer.algorithms.offline import text_loss, text_loss_gradient
from raylign.trainer.algorithms.online import range_problems
from torch import Tensor


@dataclass(kw_only=True)
class SFTConfig(AlgorithmConfig):
    """Supervised fine-tuning on completions, or on every assistant turn of a conversation."""

    name: str = "sft"
    rows_per_update: int = 64
    """Rows of one optimizer step."""

    @property
    def units_per_update(self) -> int:
        """Rows of one optimizer step."""
        return self.rows_per_update

    def check(self) -> list[str]:
        """Every problem of these values, as sentences."""
        return range_problems(at_least_one={"rows_per_update": self.rows_per_update}, not_negative={}, unit={})


@dataclass(frozen=True, slots=True)
class SFT:
    """The algorithm; a CausalAlgorithm."""

    config: SFTConfig

    @property
    def roles(self) -> frozenset[Role]:
        """Only the model in training."""
        return frozenset({Role.POLICY})

    @property
    def needs(self) -> OfflineNeeds:
        """Conversations, or prompts with completions."""
        return OfflineNeeds(RowKind.CONVERSATIONS, ModelKind.CAUSAL)

    def loss(self, outputs: TokenOutputs, batch: TextBatch, denominators: Denominators) -> LossOutput:
        """Mean over the step's trained tokens."""
        return text_loss(outputs, batch, denominators)

    def logprob_gradient(self, batch: TextBatch, denominators: Denominators) -> Tensor:
        """Known before the forward pass: a LinearAlgorithm."""
        return text_loss_gradient(batch, denominators)
