"""Odds-ratio preference optimisation: one stage, no reference (Hong et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.conf.schema import AlgorithmConfig
from raylign.data.types import Denominators, PairBatch, RowKind, TokenOutputs
from raylign.trainer.algorithms.base import LossOutput, ModelKind, OfflineNeeds, Role
from raylign.trainer.algorithms.offline import PairLogps, chosen_nll, entropy, over_real, pair_mean, pair_metrics
from raylign.trainer.algorithms.online import range_problems
from raylign.trainer.functional.preferences import log_odds_gap
from torch.nn.functional import logsigmoid


@dataclass(kw_only=True)
class ORPOConfig(AlgorithmConfig):
    """Next-token training on chosen answers with an odds-ratio term against the rejected ones."""

    name: str = "orpo"
    pairs_per_update: int = 64
    """Preference pairs of one optimizer step."""
    beta: float = 0.1
    """Weight of the odds-ratio term (the paper's lambda)."""
    train_prompts: bool = True
    """The next-token loss runs over prompt and chosen answer, as in the paper and TRL; false: the answer only."""

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
        return range_problems(
            at_least_one={"pairs_per_update": self.pairs_per_update}, not_negative={"beta": self.beta}, unit={}
        )


@dataclass(frozen=True, slots=True)
class ORPO:
    """The algorithm; a CausalAlgorithm."""

    config: ORPOConfig

    @property
    def roles(self) -> frozenset[Role]:
        """Only the model in training."""
        return frozenset({Role.POLICY})

    @property
    def needs(self) -> OfflineNeeds:
        """Pairs of answers."""
        return OfflineNeeds(RowKind.PAIRS, ModelKind.CAUSAL, self.config.train_prompts)

    def loss(self, outputs: TokenOutputs, batch: PairBatch, denominators: Denominators) -> LossOutput:
        """Next-token loss of the chosen sides minus beta log sigmoid(log odds ratio), means over the step."""
        logps = PairLogps.of(outputs, batch).per_token()
        log_odds = log_odds_gap(logps.chosen, logps.rejected)
        ratio = logsigmoid(log_odds)
        nll, nll_metric = chosen_nll(outputs, batch, denominators)
        loss = nll - self.config.beta * pair_mean(ratio, batch, denominators)
        metrics = pair_metrics(logps, self.config.beta * logps.chosen, self.config.beta * logps.rejected, batch)
        metrics |= over_real({"log_odds_ratio": ratio.detach(), "log_odds_chosen": log_odds.detach()}, batch.weight > 0)
        metrics |= {"nll_loss": nll_metric, "entropy": entropy(outputs, batch.tokens.response_mask)}
        return LossOutput(loss, metrics)
