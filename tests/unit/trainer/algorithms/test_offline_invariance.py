"""Every offline objective: the same loss, gradient and metrics for any micro-batch split, rank count and row order.

The model is a toy in float64 (an embedding and the fused head). The formulas themselves are held against TRL's code in
test_trl_equality.py; here the whole step in one pass is the truth, and row weights are held against repeated rows.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from raylign.conf.schema import DPOLoss
from raylign.data.batching import shard
from raylign.data.judged import JudgedExample, JudgedSet, mismatches
from raylign.data.preferences import PairExample, PairSet
from raylign.data.quarantine import LoadReport
from raylign.data.texts import TextSet
from raylign.data.tokenize import EncodedAnswer, EncodedText
from raylign.data.types import Denominators, TokenBatch, TokenOutputs
from raylign.trainer.algorithms.base import CausalAlgorithm, MeasuringAlgorithm, MetricSum
from raylign.trainer.algorithms.dpo import DPO, DPOConfig
from raylign.trainer.algorithms.kto import KTO, KTOConfig
from raylign.trainer.algorithms.orpo import ORPO, ORPOConfig
from raylign.trainer.algorithms.pretrain import PretrainConfig, Pretraining
from raylign.trainer.algorithms.sft import SFT, SFTConfig
from raylign.trainer.algorithms.simpo import SimPO, SimPOConfig
from raylign.trainer.functional.logprobs import fused_linear_logprobs
from raylign.trainer.functional.segments import sequence_sum
from torch import Tensor

VOCAB, WIDTH, ROWS = 12, 6, 9
SPLITS = [(1, 1, 1), (1, 17, 2), (2, 17, 3), (3, 9, 4), (5, 30, 5), (20, 12, 6)]  # ranks, budget, seed
REPORT = LoadReport("test", 0, 0, 0, 0, 0)


class Toy:
    """Each token is predicted from its predecessor alone."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
        self.head = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)

    def __call__(self, tokens: TokenBatch) -> TokenOutputs:
        at = tokens.response_mask.nonzero()[:, 0]
        logprobs, entropy, first = fused_linear_logprobs(
            self.embedding[tokens.input_ids[at - 1]],
            self.head,
            tokens.input_ids[at],
            temperature=1.0,
            block_bytes=50 * 8,
        )
        blank = torch.zeros(tokens.num_tokens, dtype=torch.float64)
        return TokenOutputs(
            blank.index_put((at,), logprobs),
            blank.index_put((at,), entropy),
            tokens.response_mask.index_put((at,), first),
        )


def _answers(seed: int, count: int = ROWS) -> list[EncodedAnswer]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        prompt, answer = rng.randint(1, 3), rng.randint(1, 7)
        made.append(EncodedAnswer(tuple(rng.randrange(VOCAB) for _ in range(prompt + answer)), prompt))
    return made


def _pairs(train_prompts: bool = False) -> PairSet:
    rows = tuple(
        PairExample(c, r, 0.0, 0.5 + i % 3) for i, (c, r) in enumerate(zip(_answers(1), _answers(2), strict=True))
    )
    return _referenced(PairSet(rows, "", REPORT, train_prompts))


def _judged() -> JudgedSet:
    answers = _answers(3)
    rows = tuple(JudgedExample(answer, i % 3 != 0, 0.5 + i % 2) for i, answer in enumerate(answers))
    return _referenced(JudgedSet(rows, mismatches(answers, 64), "", REPORT))


def _referenced(rows: Any) -> Any:
    """With a reference that differs from the toy a little."""
    tokens = TokenBatch.from_sequences(*zip(*rows.sequences(), strict=True))
    logps = sequence_sum(Toy()(tokens).logprobs.detach(), tokens)
    noise = torch.randn(logps.numel(), generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return rows.with_reference(logps + 0.5 * noise - 0.3)


def _texts() -> TextSet:
    texts = [
        EncodedText(a.token_ids, tuple(0.0 if not m or (i + t) % 5 == 0 else 0.5 + t % 2 for t, m in enumerate(a.mask)))
        for i, a in enumerate(_answers(4))
    ]
    return TextSet(tuple(texts), "", REPORT)


def _documents() -> TextSet:
    texts = [EncodedText(a.token_ids, (0.0, *[1.0] * (len(a.token_ids) - 1))) for a in _answers(5)]
    return TextSet(tuple(texts), "", REPORT)


CASES: dict[str, tuple[CausalAlgorithm, Any]] = {
    "sft": (SFT(SFTConfig()), _texts()),
    "pretrain": (Pretraining(PretrainConfig()), _documents()),
    **{
        f"dpo {loss.value}": (
            DPO(DPOConfig(beta=0.4, loss=loss, label_smoothing=0.1 if loss.value in ("sigmoid", "robust") else 0.0)),
            _pairs(),
        )
        for loss in DPOLoss
    },
    "dpo with SFT term": (DPO(DPOConfig(sft_weight=0.3)), _pairs()),
    "kto": (KTO(KTOConfig(beta=0.4, undesirable_weight=1.5)), _judged()),
    "orpo": (ORPO(ORPOConfig(beta=0.5)), _pairs(train_prompts=True)),
    "orpo on answers": (ORPO(ORPOConfig(beta=0.5, train_prompts=False)), _pairs()),
    "simpo": (SimPO(SimPOConfig(sft_weight=0.2)), _pairs()),
}
Found = tuple[float, list[Tensor], dict[str, float]]


def _step(algorithm: CausalAlgorithm, batch: Any, ranks: int, budget: int, seed: int) -> Found:
    """Loss, gradient and metrics of one optimizer step, cut as asked; ranks are simulated by adding up."""
    model = Toy()
    shards = shard(batch, num_ranks=ranks, units_per_update=99, micro_batch_tokens=budget, seed=seed)
    parts = [(m, s.windows[0].denominators) for s in shards for m in s.windows[0].micro_batches]
    if isinstance(algorithm, MeasuringAlgorithm):
        figure = sum(algorithm.measure(model(algorithm.measured_tokens(m)), m, d) for m, d in parts)
        assert float(figure.detach()) > 0.01, "cut off at 0 it would be the same however measured"
        algorithm = algorithm.given(figure)
    outputs = [algorithm.loss(model(m.tokens), m, d) for m, d in parts]
    loss = sum(o.loss for o in outputs)
    gradients = list(torch.autograd.grad(loss, [model.embedding, model.head]))
    metrics = {name: _merged([o.metrics[name] for o in outputs]) for name in outputs[0].metrics}
    return float(loss.detach()), gradients, metrics


def _merged(sums: list[MetricSum]) -> float:
    return sum(s.total.item() for s in sums) / sum(s.count.item() for s in sums)


def _assert_same(found: Found, expected: Found) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert found[2] == pytest.approx(expected[2], rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_no_split_rank_count_or_row_order_changes_anything(name: str) -> None:
    algorithm, rows = CASES[name]
    whole = _step(algorithm, rows.batch(range(ROWS)), 1, 10_000, 0)
    assert float(whole[1][0].norm()) > 1e-3
    order = random.Random(1).sample(range(ROWS), ROWS)
    for ranks, budget, seed in SPLITS:
        _assert_same(_step(algorithm, rows.batch(order), ranks, budget, seed), whole)


@pytest.mark.parametrize("name", CASES)
def test_a_filler_adds_nothing(name: str) -> None:
    algorithm, rows = CASES[name]
    batch, model, denominators = rows.batch(range(ROWS)).filler(), Toy(), Denominators(10.0, 4.0, 5.0)
    if isinstance(algorithm, MeasuringAlgorithm):
        assert algorithm.measure(model(algorithm.measured_tokens(batch)), batch, denominators) == 0
        algorithm = algorithm.given(torch.tensor(0.3))
    output = algorithm.loss(model(batch.tokens), batch, denominators)
    gradients = torch.autograd.grad(output.loss, [model.embedding, model.head])
    assert output.loss == 0 and not any(g.any() for g in gradients)
    assert all(m.count == 0 and m.total == 0 for m in output.metrics.values())


@pytest.mark.parametrize("name", ["dpo sigmoid", "dpo ipo", "dpo hinge"])
def test_a_row_of_weight_two_pulls_as_much_as_two_of_it(name: str) -> None:
    algorithm, rows = CASES[name]
    plain = replace(rows, pairs=tuple(replace(pair, weight=1.0) for pair in rows.pairs))
    heavy = replace(plain, pairs=(replace(plain.pairs[0], weight=2.0), *plain.pairs[1:]))
    twice = _step(algorithm, plain.batch([0, 0, 1, 2]), 1, 10_000, 0)
    once = _step(algorithm, heavy.batch([0, 1, 2]), 1, 10_000, 0)
    assert once[0] * 3 == pytest.approx(twice[0] * 4, rel=1e-9)  # a mean over 3 rows, and over 4
    for a, b in zip(once[1], twice[1], strict=True):
        torch.testing.assert_close(a * 3, b * 4, rtol=1e-9, atol=1e-12)


def _long(seed: int) -> EncodedAnswer:
    rng = random.Random(seed)
    return EncodedAnswer(tuple(rng.randrange(VOCAB) for _ in range(501)), 1)


@pytest.mark.parametrize("algorithm", [DPO(DPOConfig()), KTO(KTOConfig(), kl=torch.tensor(0.0))])
def test_answers_of_thousands_of_nats_have_a_log_ratio_of_exactly_0_to_themselves(algorithm: CausalAlgorithm) -> None:
    """In float32 sums of 4,000 nats are off by some 1e-4: loss 1.2e-5 from log 2 in TRL's own form of the run."""
    if isinstance(algorithm, DPO):
        rows: Any = PairSet((PairExample(_long(1), _long(2), 0.0, 1.0),), "", REPORT)
    else:
        judged = tuple(JudgedExample(_long(i), i == 1, 1.0) for i in (1, 2))
        rows = JudgedSet(judged, mismatches([row.answer for row in judged], 999), "", REPORT)
    both = TokenBatch.from_sequences(*zip(*rows.sequences(), strict=True))
    generator = torch.Generator().manual_seed(0)

    def said(tokens: TokenBatch) -> TokenOutputs:
        """The same float32 log-prob for the same token at the same place."""
        table = 16 * torch.rand(999, VOCAB, generator=generator.manual_seed(0)) - 16
        place = torch.cat([torch.arange(int(n)) for n in tokens.lengths])
        logprobs = torch.where(tokens.response_mask, table[place, tokens.input_ids], 0)
        return TokenOutputs(logprobs, torch.zeros_like(logprobs), tokens.response_mask)

    truth = [float(row.sum()) for row in said(both).logprobs.double().split(both.lengths.tolist())]
    batch = rows.with_reference(torch.tensor(truth, dtype=torch.float64)).batch(range(len(rows)))
    loss = algorithm.loss(said(batch.tokens), batch, Denominators(1000.0, 2.0)).loss
    expected = math.log(2) if isinstance(algorithm, DPO) else 0.5
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_kto_has_no_opinion_without_its_reference_and_kl() -> None:
    algorithm, rows = CASES["kto"]
    batch = rows.batch(range(ROWS))
    with pytest.raises(ValueError, match="KL; it was not measured"):
        algorithm.loss(Toy()(batch.tokens), batch, Denominators(1.0, 1.0))
    with pytest.raises(ValueError, match="reference's log-probs"):
        KTO(KTOConfig(), torch.zeros(())).loss(
            Toy()(batch.tokens), replace(batch, ref_logps=None), Denominators(1.0, 1.0)
        )
