"""Losses of preference learning from sequence log-probs, one number a pair or answer, before any mean."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from raylign.data.types import TokenBatch
from raylign.trainer.functional.segments import sequence_sum, trained_tokens
from torch import Tensor
from torch.nn.functional import logsigmoid, sigmoid

_NEVER_CERTAIN = -1e-6
"""Highest mean log-prob that odds are formed from: a probability of 1 has none."""


def answer_logps(logprobs: Tensor, tokens: TokenBatch, answers: Tensor | None) -> tuple[Tensor, Tensor]:
    """Summed log-prob and number of answer tokens of each sequence. ([S] float64, [S] int64)

    In float64, as a log-ratio is the small difference of two sums: at 1,000 nats float32 is right to 6e-5 only.
    `answers [N]`: the answers' tokens; None: those under `response_mask`.
    """
    counted = tokens if answers is None else replace(tokens, response_mask=answers)
    return sequence_sum(logprobs.double(), counted), trained_tokens(counted)


def smoothed_sigmoid_loss(logits: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(x) - e log sigmoid(-x): a label is wrong with probability e (cDPO, Mitchell 2023). [P]"""
    loss = -(1 - label_smoothing) * logsigmoid(logits)
    return loss - label_smoothing * logsigmoid(-logits) if label_smoothing > 0 else loss


def robust_sigmoid_loss(logits: Tensor, label_smoothing: float) -> Tensor:
    """The unbiased estimate of the clean loss under flips (rDPO, Chowdhury et al. 2024, eq. 9). [P]

    ((1 - e) (-log sigmoid(x)) + e log sigmoid(-x)) / (1 - 2e), for e below 1/2.
    """
    clean, flipped = -logsigmoid(logits), -logsigmoid(-logits)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge_loss(logits: Tensor) -> Tensor:
    """max(0, 1 - x) (SLiC, Zhao et al. 2023). [P]"""
    return torch.relu(1 - logits)


def ipo_loss(log_ratio_gap: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17). [P]"""
    return (log_ratio_gap - 1 / (2 * beta)).square()


def log_odds_gap(chosen: Tensor, rejected: Tensor) -> Tensor:
    """log odds(chosen) - log odds(rejected) from mean token log-probs, odds = p / (1 - p) (Hong et al. 2024). [P]"""
    chosen, rejected = chosen.clamp(max=_NEVER_CERTAIN), rejected.clamp(max=_NEVER_CERTAIN)
    return (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))


def kto_loss(log_ratio: Tensor, kl: Tensor, desirable: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta (r - kl)) where desirable, 1 - sigmoid(beta (kl - r)) elsewhere (Ethayarajh et al. 2024). [S]"""
    gap = log_ratio - kl
    return 1 - sigmoid(beta * torch.where(desirable, gap, -gap))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x below 0, by whichever form keeps its digits (Maechler 2012)."""
    return torch.where(x < -math.log(2), torch.log1p(-x.exp()), (-torch.expm1(x)).log())
