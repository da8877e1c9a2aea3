"""DPO's and KTO's losses as their papers write them, in plain Python floats: no constant on the way is float32."""

from __future__ import annotations

import math
import random

import pytest
import torch
from raylign.conf.schema import DPOLoss, IPONormalisation
from raylign.data.row_batches import JudgedBatch
from raylign.data.types import Denominators, PairBatch, TokenBatch, TokenOutputs
from raylign.trainer.algorithms.dpo import DPO, DPOConfig
from raylign.trainer.algorithms.kto import KTO, KTOConfig

Rows = list[list[float]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def answers(draw: random.Random, count: int) -> tuple[TokenBatch, TokenOutputs, Rows]:
    """Two tokens of prompt and one to nine of answer, each of about -2 nats."""
    said = [[draw.gauss(-2, 1) for _ in range(draw.randint(1, 9))] for _ in range(count)]
    masks = [[False, False, *(True for _ in row)] for row in said]
    tokens = TokenBatch.from_sequences([[7] * len(mask) for mask in masks], masks)
    flat = torch.tensor([value for row in said for value in (0.0, 0.0, *row)], dtype=torch.float64)
    return tokens, TokenOutputs(flat, flat * 0, tokens.response_mask), said


def doubles(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(8))
def test_kto(seed: int):
    """Whatever the class weights are: 1.2 in float32 was off by 4e-8."""
    draw = random.Random(seed)
    size = draw.randint(2, 6)
    tokens, outputs, said = answers(draw, size)
    others, their_outputs, their_said = answers(draw, size)
    good, weight = [draw.random() < 0.5 for _ in said], [draw.choice([1.0, 0.3]) for _ in said]
    ref, ref_others = ([draw.gauss(-8, 3) for _ in said] for _ in range(2))
    batch = JudgedBatch(tokens, others, torch.tensor(good), doubles(weight), doubles(ref), doubles(ref_others))
    beta, desirable, undesirable = 0.3, 1.2, 0.7
    kto = KTO(KTOConfig(beta=beta, desirable_weight=desirable, undesirable_weight=undesirable))
    counts = Denominators(1, size)
    kl = max(0.0, sum(sum(row) - r for row, r in zip(their_said, ref_others, strict=True)) / size)
    wanted = 0.0
    for row, r, w, is_good in zip(said, ref, weight, good, strict=True):
        gap = beta * (sum(row) - r - kl)
        wanted += w * (desirable * (1 - sigmoid(gap)) if is_good else undesirable * (1 - sigmoid(-gap))) / size
    found = kto.given(kto.measure(their_outputs, batch, counts)).loss(outputs, batch, counts).loss
    assert float(found) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("form", list(DPOLoss))
@pytest.mark.parametrize("seed", range(4))
def test_dpo(form: DPOLoss, seed: int):
    draw = random.Random(seed)
    pairs = draw.randint(1, 4)
    tokens, outputs, said = answers(draw, 2 * pairs)
    ref, weight = [draw.gauss(-8, 3) for _ in said], [draw.choice([1.0, 0.3]) for _ in range(pairs)]
    batch = PairBatch(tokens, doubles([0.0] * pairs), doubles(weight), None, doubles(ref))
    beta, eps = 0.3, 0.1 if form in (DPOLoss.sigmoid, DPOLoss.robust) else 0.0
    config = DPOConfig(beta=beta, loss=form, label_smoothing=eps, ipo_normalisation=IPONormalisation.token_mean)
    wanted = 0.0
    for p, w in enumerate(weight):
        chosen, rejected = (sum(said[i]) - ref[i] for i in (2 * p, 2 * p + 1))
        h = beta * (chosen - rejected)
        right, wrong = -math.log(sigmoid(h)), -math.log(sigmoid(-h))
        each = {
            DPOLoss.sigmoid: (1 - eps) * right + eps * wrong,
            DPOLoss.robust: ((1 - eps) * right - eps * wrong) / (1 - 2 * eps),
            DPOLoss.hinge: max(0.0, 1 - h),
            DPOLoss.ipo: (chosen / len(said[2 * p]) - rejected / len(said[2 * p + 1]) - 1 / (2 * beta)) ** 2,
        }
        wanted += w * each[form] / pairs
    found = DPO(config).loss(outputs, batch, Denominators(sum(map(len, said)), 2 * pairs)).loss
    assert float(found) == pytest.approx(wanted, rel=1e-12)
