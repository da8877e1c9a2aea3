"""Direct preference optimisation and its close relatives (Rafailov et al. 2023; see trainer/functional/preferences.py).

The reference's log-probs come with the batch: they are computed once, before training (app/launch/reference.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from raylign.conf.schema import AlgorithmConfig, DPOLoss, IPONormalisation
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
from raylign.trainer.functional.preferences import hinge_loss, ipo_loss, robust_sigmoid_loss, smoothed_sigmoid_loss
from torch import Tensor


@dataclass(kw_only=True)
class DPOConfig(AlgorithmConfig):
    """Direct preference optimisation on pairs of answers."""

    name: str = "dpo"
    pairs_per_update: int = 64
    """Preference pairs of one optimizer step."""
    loss: DPOLoss = DPOLoss.sigmoid
    """The form of the loss."""
    beta: float = 0.1
    """How strongly the policy is held to the reference; for ipo its tau."""
    label_smoothing: float = 0.0
    """Probability that a label is wrong: sigmoid becomes conservative DPO, robust corrects for it; below 0.5."""
    ipo_normalisation: IPONormalisation = IPONormalisation.token_mean
    """Of loss=ipo: log-ratios as means over an answer's tokens, or as sums."""
    sft_weight: float = 0.0
    """Weight of the chosen answers' next-token loss beside it (RPO)."""

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
            not_negative={"sft_weight": self.sft_weight},
            unit={},
        )
        if not self.beta > 0:
            problems.append(f"algorithm.beta is {self.beta}; set it above 0 (0.1 is usual)")
        problems += smoothing_problems(self.label_smoothing)
        if self.label_smoothing > 0 and self.loss in (DPOLoss.ipo, DPOLoss.hinge):
            problems.append(
                f"algorithm.label_smoothing is {self.label_smoothing}, which loss={self.loss.value} does not use; set "
                "it to 0, or algorithm.loss to sigmoid or robust"
            )
        return problems


@dataclass(frozen=True, slots=True)
class DPO:
    """The algorithm; a CausalAlgorithm."""

    config: DPOConfig

    @property
    def roles(self) -> frozenset[Role]:
        """The reference's log-probs are computed once, before training."""
        return frozenset({Role.POLICY, Role.REFERENCE})

    @property
    def needs(self) -> OfflineNeeds:
        """Pairs of answers."""
        return OfflineNeeds(RowKind.PAIRS, ModelKind.CAUSAL)

    def loss(self, outputs: TokenOutputs, batch: PairBatch, denominators: Denominators) -> LossOutput:
        """Mean over the step's pairs of weight times loss, plus the chosen answers' next-token loss when asked.

        Raises ValueError for a batch without the reference's log-probs.
        """
        if batch.ref_logps is None:
            raise ValueError("DPO needs the reference's log-probs, and the batch has none")
        logps = PairLogps.of(outputs, batch)
        chosen, rejected = logps.chosen - batch.ref_logps[::2], logps.rejected - batch.ref_logps[1::2]
        loss = pair_mean(self._per_pair(chosen, rejected, logps), batch, denominators)
        beta = self.config.beta
        metrics = pair_metrics(logps, beta * chosen, beta * rejected, batch)
        metrics["entropy"] = entropy(outputs, batch.tokens.response_mask)
        if self.config.sft_weight > 0:
            nll, metrics["nll_loss"] = chosen_nll(outputs, batch, denominators)
            loss = loss + self.config.sft_weight * nll
        return LossOutput(loss, metrics)

    def _per_pair(self, chosen: Tensor, rejected: Tensor, logps: PairLogps) -> Tensor:
        config = self.config
        match config.loss:
            case DPOLoss.sigmoid:
                return smoothed_sigmoid_loss(config.beta * (chosen - rejected), config.label_smoothing)
            case DPOLoss.robust:
                return robust_sigmoid_loss(config.beta * (chosen - rejected), config.label_smoothing)
            case DPOLoss.hinge:
                return hinge_loss(config.beta * (chosen - rejected))
            case DPOLoss.ipo:
                if config.ipo_normalisation is IPONormalisation.token_mean:
                    chosen, rejected = chosen / logps.chosen_tokens, rejected / logps.rejected_tokens
                return ipo_loss(chosen - rejected, config.beta)
