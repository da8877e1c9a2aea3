"""Plain next-token training on raw text, documents packed end to end without attention between them."""

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
class PretrainConfig(AlgorithmConfig):
    """Next-token training on raw text."""

    name: str = "pretrain"
    documents_per_update: int = 64
    """Documents of one optimizer step."""

    @property
    def units_per_update(self) -> int:
        """Documents of one optimizer step."""
        return self.documents_per_update

    def check(self) -> list[str]:
        """Every problem of these values, as sentences."""
        return range_problems(
            at_least_one={"documents_per_update": self.documents_per_update}, not_negative={}, unit={}
        )


@dataclass(frozen=True, slots=True)
class Pretraining:
    """The algorithm; a CausalAlgorithm."""

    config: PretrainConfig

    @property
    def roles(self) -> frozenset[Role]:
        """Only the model in training."""
        return frozenset({Role.POLICY})

    @property
    def needs(self) -> OfflineNeeds:
        """Raw text."""
        return OfflineNeeds(RowKind.DOCUMENTS, ModelKind.CAUSAL)

    def loss(self, outputs: TokenOutputs, batch: TextBatch, denominators: Denominators) -> LossOutput:
        """Mean over the step's tokens, each document's first one left out: nothing predicts it."""
        return text_loss(outputs, batch, denominators)

    def logprob_gradient(self, batch: TextBatch, denominators: Denominators) -> Tensor:
        """Known before the forward pass: a LinearAlgorithm."""
        return text_loss_gradient(batch, denominators)
