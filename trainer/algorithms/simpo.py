"""Simple preference optimisation: length-normalised log-probs, a target margin, no reference (Meng et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.conf.schema import AlgorithmConfig
from raylign.data.types import Denominators, PairBatch, RowKind, TokenOutputs
from raylign.trainer.algorithms.base import LossOutput, ModelKind, OfflineNeeds, Role
from raylign.trainer.algorithms.offline import (
    PairLogps,
    chosen_nll,
    entropy,
    pair_mean,
    pair_metrics,
    smoothing_problems,
)
from raylign.trainer.algorithms.online import range_problems
from raylign.trainer.functional.preferences import smoothed_sigmoid_loss


@dataclass(kw_only=True)
class SimPOConfig(AlgorithmConfig):
    """Preference optimisation on mean log-probs, without a reference."""

    name: str = "simpo"
    pairs_per_update: int = 64
    """Preference pairs of one optimizer step."""
    beta: float = 2.0
    """Scale of the mean log-prob as a reward."""
    gamma: float = 0.5
    """By how much the chosen answer's reward should win."""
    label_smoothing: float = 0.0
    """Probability that a label is wrong; below 0.5."""
    sft_weight: float = 0.0
    """Weight of the chosen answers' next-token loss beside it (CPO-SimPO)."""

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
        problems = range_problems(
            at_least_one={"pairs_per_update": self.pairs_per_update},
            not_negative={"gamma": self.gamma, "sft_weight": self.sft_weight},
            unit={},
        )
        if not self.beta > 0:
            problems.append(f"algorithm.beta is {self.beta}; set it above 0 (2 is usual)")
        problems += smoothing_problems(self.label_smoothing)
        return problems


@dataclass(frozen=True, slots=True)
class SimPO:
    """The algorithm; a CausalAlgorithm."""

    config: SimPOConfig

    @property
    def roles(self) -> frozenset[Role]:
        """Only the model in training."""
        return frozenset({Role.POLICY})

    @property
    def needs(self) -> OfflineNeeds:
        """Pairs of answers."""
        return OfflineNeeds(RowKind.PAIRS, ModelKind.CAUSAL)

    def loss(self, outputs: TokenOutputs, batch: PairBatch, denominators: Denominators) -> LossOutput:
        """-log sigmoid(beta (mean log-prob chosen - rejected) - gamma), a mean over the step's pairs."""
        config = self.config
        logps = PairLogps.of(outputs, batch).per_token()
        gap = config.beta * (logps.chosen - logps.rejected) - config.gamma
        loss = pair_mean(smoothed_sigmoid_loss(gap, config.label_smoothing), batch, denominators)
        metrics = pair_metrics(logps, config.beta * logps.chosen, config.beta * logps.rejected, batch)
        metrics["entropy"] = entropy(outputs, batch.tokens.response_mask)
        if config.sft_weight > 0:
            nll, metrics["nll_loss"] = chosen_nll(outputs, batch, denominators)
            loss = loss + config.sft_weight * nll
        return LossOutput(loss, metrics)
