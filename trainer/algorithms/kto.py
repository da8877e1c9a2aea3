"""Kahneman-Tversky optimisation: learns from single answers, each desirable or not (Ethayarajh et al. 2024).

The reference point is the KL of policy and reference, estimated on prompts with other rows' answers. It is a figure of
the whole step: measured over all ranks and micro-batches before the first gradient, so that no split changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from raylign.conf.schema import AlgorithmConfig
from raylign.data.row_batches import JudgedBatch
from raylign.data.types import Denominators, RowKind, TokenBatch, TokenOutputs
from raylign.trainer.algorithms.base import LossOutput, MetricSum, ModelKind, OfflineNeeds, Role
from raylign.trainer.algorithms.offline import entropy, over_real
from raylign.trainer.algorithms.online import range_problems
from raylign.trainer.functional.preferences import answer_logps, kto_loss
from torch import Tensor


@dataclass(kw_only=True)
class KTOConfig(AlgorithmConfig):
    """Learning from thumbs: single answers that are desirable or not."""

    name: str = "kto"
    rows_per_update: int = 64
    """Judged answers of one optimizer step."""
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    desirable_weight: float = 1.0
    """Weight of desirable answers; with the counts, keep desirable to undesirable between 1:1 and 4:3."""
    undesirable_weight: float = 1.0
    """Weight of undesirable answers."""

    @property
    def units_per_update(self) -> int:
        """Judged answers of one optimizer step."""
        return self.rows_per_update

    @property
    def sequences_per_unit(self) -> int:
        """An answer, and its prompt with another row's."""
        return 2

    def check(self) -> list[str]:
        """Every problem of these values, as sentences."""
        problems = range_problems(at_least_one={"rows_per_update": self.rows_per_update}, not_negative={}, unit={})
        for key in ("beta", "desirable_weight", "undesirable_weight"):
            if not getattr(self, key) > 0:
                problems.append(f"algorithm.{key} is {getattr(self, key)}; set it above 0")
        return problems

    def data_warnings(self, counts: Mapping[str, int]) -> list[str]:
        """A balance outside what the paper found to work (its eq. 8), with the weight that would mend it."""
        desirable, undesirable = counts["desirable"], counts["undesirable"]
        ratio = self.desirable_weight * desirable / (self.undesirable_weight * undesirable)
        if 0.995 <= ratio <= 4 / 3 + 0.005:
            return []
        low = self.undesirable_weight * undesirable / desirable
        return [
            f"kto: {desirable} desirable rows x {self.desirable_weight:g} to {undesirable} undesirable x "
            f"{self.undesirable_weight:g} is {ratio:.2f} to 1, outside 1 to 1.33; "
            f"algorithm.desirable_weight between {low:.2f} and {low * 4 / 3:.2f} would balance them."
        ]


@dataclass(frozen=True, slots=True)
class KTO:
    """The algorithm; a CausalAlgorithm that measures the step's KL first (a MeasuringAlgorithm)."""

    config: KTOConfig
    kl: Tensor | None = None  # [] nats an answer, of this step

    @property
    def roles(self) -> frozenset[Role]:
        """The reference's log-probs are computed once, before training."""
        return frozenset({Role.POLICY, Role.REFERENCE})

    @property
    def needs(self) -> OfflineNeeds:
        """Single answers with a verdict."""
        return OfflineNeeds(RowKind.JUDGED, ModelKind.CAUSAL)

    def measured_tokens(self, batch: JudgedBatch) -> TokenBatch:
        """Each prompt with another row's answer."""
        return batch.mismatched

    def measure(self, outputs: TokenOutputs, batch: JudgedBatch, denominators: Denominators) -> Tensor:
        """This batch's share of the mean log-ratio of mismatched answers. []"""
        logps, _ = answer_logps(outputs.logprobs, batch.mismatched, None)
        gap = logps - _given(batch.ref_mismatched_logps)
        return torch.where(batch.weight > 0, gap, 0).sum() / denominators.sequences

    def given(self, figure: Tensor) -> KTO:
        """With the step's KL, which cannot be below 0 though its estimate can."""
        return replace(self, kl=figure.detach().clamp(min=0))

    def loss(self, outputs: TokenOutputs, batch: JudgedBatch, denominators: Denominators) -> LossOutput:
        """Mean over the step's rows of row weight times class weight times loss.

        Raises ValueError without the step's KL or the reference's log-probs.
        """
        if self.kl is None:
            raise ValueError("KTO's loss needs the step's KL; it was not measured")
        config = self.config
        logps, _ = answer_logps(outputs.logprobs, batch.tokens, None)
        kl = self.kl.to(logps.device, torch.float64)  # an engine of one process adds it up on the CPU
        log_ratio = logps - _given(batch.ref_logps)
        per_row = kto_loss(log_ratio, kl, batch.desirable, config.beta)
        # Tensors: of numbers alone torch.where makes float32. Filled where they are, so that nothing is copied there.
        desirable, undesirable = (
            torch.full_like(per_row, value) for value in (config.desirable_weight, config.undesirable_weight)
        )
        weight = torch.where(batch.desirable, desirable, undesirable) * batch.weight
        real = batch.weight > 0
        loss = torch.where(real, weight * per_row, 0).sum() / denominators.sequences
        rewards = config.beta * log_ratio.detach()
        metrics: dict[str, MetricSum] = {}
        for side, mask in (("chosen", real & batch.desirable), ("rejected", real & ~batch.desirable)):
            metrics |= over_real({f"rewards/{side}": rewards, f"logps/{side}": logps.detach()}, mask)
        metrics |= over_real({"kl": kl.expand_as(rewards)}, real)
        metrics["entropy"] = entropy(outputs, batch.tokens.response_mask)
        return LossOutput(loss, metrics)


def _given(ref_logps: Tensor | None) -> Tensor:
    if ref_logps is None:
        raise ValueError("KTO needs the reference's log-probs, and the batch has none")
    return ref_logps
