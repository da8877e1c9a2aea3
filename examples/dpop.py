"""An algorithm of one's own in one file: DPO-positive (Pal et al. 2024, arXiv:2402.13228, eq. 3).

DPO may lower the probability of both answers as long as that of the rejected one falls faster. DPO-positive subtracts a
penalty wherever the chosen answer has become less likely than under the reference.

    raylign train algorithm=dpop.py:DPOP algorithm.positive_weight=50 policy.model=my-model data.train=pairs.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass

from raylign.conf.schema import AlgorithmConfig
from raylign.data.types import Denominators, PairBatch, RowKind, TokenOutputs
from raylign.trainer.algorithms.base import LossOutput, ModelKind, OfflineNeeds, Role
from raylign.trainer.algorithms.offline import PairLogps, pair_mean, pair_metrics
from torch.nn.functional import logsigmoid


@dataclass(kw_only=True)
class DPOPConfig(AlgorithmConfig):
    """DPO with a penalty where the chosen answer loses probability."""

    pairs_per_update: int = 64
    """Preference pairs of one optimizer step."""
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    positive_weight: float = 50.0
    """Weight of the penalty; 0 is DPO."""

    @property
    def units_per_update(self) -> int:
        return self.pairs_per_update

    @property
    def sequences_per_unit(self) -> int:
        return 2

    def check(self) -> list[str]:
        if self.positive_weight >= 0:
            return []
        return [f"algorithm.positive_weight is {self.positive_weight}; set it to 0 or more"]


@dataclass(frozen=True)
class DPOP:
    config: DPOPConfig

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset({Role.POLICY, Role.REFERENCE})  # the reference is asked once, before training

    @property
    def needs(self) -> OfflineNeeds:
        return OfflineNeeds(RowKind.PAIRS, ModelKind.CAUSAL)

    def loss(self, outputs: TokenOutputs, batch: PairBatch, denominators: Denominators) -> LossOutput:
        assert batch.ref_logps is not None
        logps = PairLogps.of(outputs, batch)
        chosen, rejected = logps.chosen - batch.ref_logps[::2], logps.rejected - batch.ref_logps[1::2]
        penalty = self.config.positive_weight * (-chosen).clamp(min=0)
        beta = self.config.beta
        loss = pair_mean(-logsigmoid(beta * (chosen - rejected - penalty)), batch, denominators)
        return LossOutput(loss, pair_metrics(logps, beta * chosen, beta * rejected, batch))
