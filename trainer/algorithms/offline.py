"""What the offline algorithms share: sums over texts and pairs, their metrics in TRL's words. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from raylign.data.row_batches import TextBatch
from raylign.data.types import Denominators, PairBatch, TokenOutputs
from raylign.trainer.algorithms.base import LossOutput, MetricSum
from raylign.trainer.functional.masked import masked_sum
from raylign.trainer.functional.preferences import answer_logps
from torch import Tensor


def text_loss(outputs: TokenOutputs, batch: TextBatch, denominators: Denominators) -> LossOutput:
    """Weighted negative log-likelihood, a mean over all trained tokens of the step."""
    mask = batch.tokens.response_mask
    loss = masked_sum(-outputs.logprobs * batch.weights, mask) / denominators.tokens
    right = MetricSum((outputs.first_choice & mask).sum().float(), mask.sum().float())
    return LossOutput(loss, {"entropy": entropy(outputs, mask), "mean_token_accuracy": right})


def text_loss_gradient(batch: TextBatch, denominators: Denominators) -> Tensor:
    """Of `text_loss` with respect to the log-probs. [N]"""
    return torch.where(batch.tokens.response_mask, -batch.weights / denominators.tokens, 0)


def entropy(outputs: TokenOutputs, mask: Tensor) -> MetricSum:
    """Mean entropy of the masked tokens' predictions."""
    return MetricSum(masked_sum(outputs.entropy.detach(), mask).float(), mask.sum().float())


@dataclass(frozen=True, slots=True)
class PairLogps:
    """The log-probs of a pair batch's answers, `[P]` each; fillers are in it with weight 0."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @classmethod
    def of(cls, outputs: TokenOutputs, batch: PairBatch) -> PairLogps:
        """Sums over the answers' tokens."""
        logps, counts = answer_logps(outputs.logprobs, batch.tokens, batch.answers)
        counts = counts.clamp(min=1)  # a filler has none
        return cls(logps[::2], logps[1::2], counts[::2], counts[1::2])

    def per_token(self) -> PairLogps:
        """Means instead of sums."""
        return PairLogps(
            self.chosen / self.chosen_tokens,
            self.rejected / self.rejected_tokens,
            self.chosen_tokens,
            self.rejected_tokens,
        )


def smoothing_problems(label_smoothing: float) -> list[str]:
    """A sentence when `algorithm.label_smoothing` is no probability of a wrong label; NaN is none."""
    if 0 <= label_smoothing < 0.5:
        return []
    return [
        f"algorithm.label_smoothing is {label_smoothing}; set it to 0 or more and below 0.5, where labels would say "
        "nothing"
    ]


def pair_mean(per_pair: Tensor, batch: PairBatch, denominators: Denominators) -> Tensor:
    """Weight times loss, a mean over all pairs of the step. []"""
    return torch.where(batch.weight > 0, batch.weight * per_pair, 0).sum() / (denominators.sequences / 2)


def chosen_nll(outputs: TokenOutputs, batch: PairBatch, denominators: Denominators) -> tuple[Tensor, MetricSum]:
    """Weighted negative log-likelihood of the chosen sides, a mean over all their trained tokens of the step; and it
    as a metric. ([], ...)
    """
    zero = torch.zeros_like(batch.weight)
    weights = _per_token(torch.stack([batch.weight, zero], 1).flatten(), batch)  # rejected sides count 0
    mask = batch.tokens.response_mask
    nll = masked_sum(-outputs.logprobs * weights, mask) / denominators.chosen_tokens
    trained = (weights > 0) & mask
    return nll, MetricSum(masked_sum(-outputs.logprobs.detach(), trained).float(), trained.sum().float())


def _per_token(per_sequence: Tensor, batch: PairBatch) -> Tensor:
    """[2P] -> [N]"""
    return torch.repeat_interleave(per_sequence, batch.tokens.lengths.long(), output_size=batch.tokens.num_tokens)


def pair_metrics(
    logps: PairLogps, chosen_rewards: Tensor, rejected_rewards: Tensor, batch: PairBatch
) -> dict[str, MetricSum]:
    """`rewards/*` and `logps/*`, means over pairs."""
    chosen, rejected = chosen_rewards.detach(), rejected_rewards.detach()
    terms = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "logps/chosen": logps.chosen.detach(),
        "logps/rejected": logps.rejected.detach(),
    }
    return over_real(terms, batch.weight > 0)


def over_real(terms: dict[str, Tensor], real: Tensor) -> dict[str, MetricSum]:
    """Means over the entries where `real`."""
    count = real.sum().float()
    return {name: MetricSum(torch.where(real, term, 0).sum().float(), count) for name, term in terms.items()}
