"""Every offline algorithm from rows on disk to a lower held-out loss, in one process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest
from raylign.conf.schema import DataConfig, OptimConfig, Precision
from raylign.data.row_feed import FeedSettings, RowFeed
from raylign.data.row_kinds import TrainRows, load_rows
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import RowKind, TokenBatch
from raylign.trainer.algorithms import ALGORITHMS
from raylign.trainer.algorithms.base import ModelKind, Role
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from raylign.trainer.workers.offline_model import objective_of
from raylign.trainer.workers.sequence_scores import score_sequences
from torch import Tensor

WORDS = ("apple", "river", "train", "letter", "light")
ROWS, STEPS = 40, 10


class OneRank:
    """A SequenceScorer that is this process."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    async def sequence_logprobs(self, batches: Sequence[Sequence[TokenBatch]]) -> list[list[Tensor]]:
        return [self._learner.sequence_logprobs(rank) for rank in batches]


def _row(kind: RowKind, i: int) -> dict[str, object]:
    """The good answer names the word, the bad one does not."""
    question, good, bad = f"What is a {WORDS[i % 5]} {i}?", f"It is the {WORDS[i % 5]}.", f"No idea {i}."
    match kind:
        case RowKind.DOCUMENTS:
            return {"text": f"{question} {good}"}
        case RowKind.CONVERSATIONS:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": good}]
            return {"messages": turns} if i % 2 else {"prompt": question, "completion": good}
        case RowKind.PAIRS:
            return {"prompt": question, "chosen": good, "rejected": bad}
        case RowKind.JUDGED:
            return {"prompt": question, "completion": (good, bad)[i % 2], "label": i % 2 == 0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "sft", "rm", "dpo", "kto", "orpo", "simpo"])
def test_it_learns_from_rows_on_disk(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    config_class, make = ALGORITHMS[name]
    algorithm = make(config_class())
    needs = algorithm.needs  # type: ignore[union-attr]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(_row(needs.rows, i)) + "\n" for i in range(ROWS)))
    tokenizer = load_tokenizer(str(tiny_model_dir))
    rows: TrainRows = load_rows(
        needs.rows, str(file), DataConfig(max_length=128), tokenizer, train_prompts=needs.train_prompts
    )
    scalar = needs.model is ModelKind.SCALAR
    model = (
        load_scalar_model(tiny_model_dir, precision=Precision.float32, new_head_seed=0)
        if scalar
        else load_causal_lm(tiny_model_dir, precision=Precision.float32)
    )
    rate = 2e-4 if Role.REFERENCE in algorithm.roles else 1e-3
    learner = Learner(TorchEngine(model, OptimConfig(lr=rate), total_steps=STEPS))
    if Role.REFERENCE in algorithm.roles:
        scores = score_sequences(rows.sequences(), OneRank(learner), num_ranks=1, micro_batch_tokens=512)
        rows = rows.with_reference(asyncio.run(scores))
    settings = FeedSettings(num_ranks=1, rows_per_update=16, micro_batch_tokens=512, seed=0, shuffle=True)
    feed, objective = RowFeed(rows, {"known": rows}, settings, {}), objective_of(algorithm)  # type: ignore[arg-type]
    held_out = feed.held_out()["known"][0]
    before = learner.evaluate(held_out, objective)
    updates = [learner.update(feed.next_update()[0], objective).metrics for _ in range(STEPS)]
    after = learner.evaluate(held_out, objective)
    losses = [metrics["loss"] for metrics in updates]
    assert fmean(losses[-3:]) < 0.95 * fmean(losses[:3]) and after["loss"] < 0.95 * before["loss"]
    assert int(feed.state()["num_tokens"]) == sum(int(metrics["tokens"]) for metrics in updates)
    if Role.REFERENCE in algorithm.roles:
        assert updates[0]["rewards/chosen"] == pytest.approx(0, abs=1e-3), "policy and reference are one model at first"
        assert after["rewards/chosen"] - after["rewards/rejected"] > 0.05
    if needs.rows is RowKind.PAIRS:
        assert after.get("rewards/accuracies", after.get("accuracy")) > 0.9
