"""Evaluating a learner gives what updating it would report, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from raylign.conf.schema import OptimConfig, Precision
from raylign.data.batching import shard
from raylign.data.row_batches import TextBatch
from raylign.data.sample_model import tiny_model
from raylign.data.types import Denominators, PairBatch, TokenBatch
from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
from raylign.trainer.algorithms.sft import SFT, SFTConfig
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from raylign.trainer.workers.offline_model import CausalObjective, LinearObjective, ScalarObjective, objective_of


def test_evaluation_reports_the_loss_and_leaves_the_weights(tmp_path: Path) -> None:
    model = load_scalar_model(tiny_model(tmp_path / "tiny", tie=True), precision=Precision.float32, new_head_seed=1)
    learner = Learner(TorchEngine(model, OptimConfig(lr=1e-2), total_steps=10))
    rows = [[5 + i, 9, 20 + 3 * i, 7][: 2 + i % 3] for i in range(8)]
    tokens = TokenBatch.from_sequences(rows, [[False] + [True] * (len(r) - 1) for r in rows])
    pairs = PairBatch(tokens, torch.zeros(4), torch.ones(4))
    [one] = shard(pairs, num_ranks=1, units_per_update=4, micro_batch_tokens=8, seed=0)
    objective = ScalarObjective(RewardModelling(RMConfig()))
    before = [p.detach().clone() for p in model.parameters()]
    evaluated = learner.evaluate(one, objective)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    trained = learner.update(one, objective)
    assert evaluated["loss"] == pytest.approx(trained.metrics["loss"], rel=1e-5)
    assert evaluated["accuracy"] == trained.metrics["accuracy"]
    assert learner.evaluate(one, objective)["loss"] < evaluated["loss"]


def test_a_gradient_formed_in_the_forward_pass_is_the_one_of_backward(tmp_path: Path) -> None:
    """Weighted tokens, untrained ones, a filler; body and head."""
    model = load_causal_lm(tiny_model(tmp_path / "tiny", tie=True), precision=Precision.float32).double()
    rows = [[5 + i, 9, 20 + 3 * i, 7, 30 + i][: 3 + i % 3] for i in range(6)]
    weights = [[0.0, *(0.5 * ((i + t) % 3) for t in range(len(row) - 1))] for i, row in enumerate(rows)]
    tokens = TokenBatch.from_sequences(rows, [[w > 0 for w in row] for row in weights])
    texts = TextBatch(tokens, torch.tensor([w for row in weights for w in row]))
    algorithm, denominators = SFT(SFTConfig()), Denominators(tokens=17.0, sequences=6.0, chosen_tokens=0.0)
    assert isinstance(objective_of(algorithm), LinearObjective)
    found = []
    for objective in (LinearObjective(algorithm), CausalObjective(algorithm)):
        for batch in (texts, texts.filler()):
            model.zero_grad()
            output = objective(model, batch, denominators)
            output.loss.backward()
            gradients = [p.grad.clone() for p in model.parameters()]
            found.append((output.loss.detach(), output.metrics["entropy"].total, *gradients))
    for a, b in zip(found[:2], found[2:], strict=True):
        for mine, truth in zip(a, b, strict=True):
            torch.testing.assert_close(mine, truth, rtol=1e-6, atol=1e-9)
    assert max(float(g.abs().max()) for g in found[0][2:]) > 1e-3 and not any(bool(g.any()) for g in found[1][2:])
