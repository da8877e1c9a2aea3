"""Reward-model training on preference pairs (Bradley and Terry 1952; Ouyang et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from raylign.conf.schema import AlgorithmConfig
from raylign.data.types import Denominators, PairBatch, RowKind
from raylign.trainer.algorithms.base import LossOutput, ModelKind, OfflineNeeds, Role
from raylign.trainer.algorithms.offline import over_real, pair_mean, smoothing_problems
from raylign.trainer.algorithms.online import range_problems
from raylign.trainer.functional.losses import bradley_terry_loss
from torch import Tensor


@dataclass(kw_only=True)
class RMConfig(AlgorithmConfig):
    """Bradley-Terry reward model."""

    name: str = "rm"
    pairs_per_update: int = 64
    """Preference pairs of one optimizer step."""
    use_margin: bool = False
    """Read the rows' `margin`: by how much the chosen answer should win."""
    label_smoothing: float = 0.0
    """Probability that a choice is wrong, as the feedback report estimates it; below 0.5."""
    centering_coef: float = 0.0
    """Weight of (chosen + rejected)^2, which keeps scores near 0; 0.01 is usual."""

    @property
    def units_per_update(self) -> int:
        """Pairs of one optimizer step."""
        return self.pairs_per_update

    @property
    def sequences_per_unit(self) -> int:
        """Chosen and rejected."""
        return 2

    def check(self) -> list[str]:
        """Every problem of these values, as sentences."""
        return [
            *range_problems(
                at_least_one={"pairs_per_update": self.pairs_per_update},
                not_negative={"centering_coef": self.centering_coef},
                unit={},
            ),
            *smoothing_problems(self.label_smoothing),
        ]


@dataclass(frozen=True, slots=True)
class RewardModelling:
    """The algorithm; a ScalarAlgorithm."""

    config: RMConfig

    @property
    def roles(self) -> frozenset[Role]:
        """Only the model in training."""
        return frozenset({Role.POLICY})

    @property
    def needs(self) -> OfflineNeeds:
        """Pairs, scored by their last token."""
        return OfflineNeeds(RowKind.PAIRS, ModelKind.SCALAR)

    def loss(self, scores: Tensor, batch: PairBatch, denominators: Denominators) -> LossOutput:
        """Mean over all the step's pairs of weight times loss. `scores` is `[2P]`, chosen and rejected alternating.

        A pair counts by its two trained sequences; a filler has none, and weight 0.
        """
        chosen, rejected = scores.view(-1, 2).unbind(1)
        margin = batch.margin if self.config.use_margin else torch.zeros_like(batch.margin)
        per_pair = bradley_terry_loss(
            chosen,
            rejected,
            margin,
            label_smoothing=self.config.label_smoothing,
            centering_coef=self.config.centering_coef,
        )
        loss = pair_mean(per_pair, batch, denominators)
        chosen, rejected = chosen.detach().float(), rejected.detach().float()
        terms = {
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "mean_reward": (chosen + rejected) / 2,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
        }
        return LossOutput(loss, over_real(terms, batch.weight > 0))
