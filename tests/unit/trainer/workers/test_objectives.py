"""Evaluating a learner gives what updating it would report, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conf.schema import OptimConfig, Precision
from data.batching import shard
from data.sample_model import tiny_model
from data.types import PairBatch, TokenBatch
from trainer.algorithms.rm import RewardModelling, RMConfig
from trainer.engine.torch_engine import TorchEngine
from trainer.learner import Learner
from trainer.models.loading import load_scalar_model
from trainer.workers.offline_model import ScalarObjective


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
