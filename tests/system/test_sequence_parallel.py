"""Ranks that compute a batch together give what one rank gives: log-probs, losses, metrics and gradients.

Every loss and role of the project on two ranks; then whole updates through ZeRO, two groups of two ranks.
"""

from __future__ import annotations

import faulthandler
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from raylign.conf.schema import Device, LearnerConfig, LoraConfig, OptimConfig, Precision
from raylign.data.sample_model import tiny_model
from raylign.data.types import Denominators, PolicyExperience, RankShard, TokenBatch, UpdateWindow
from raylign.trainer.algorithms.base import LossOutput, MetricSum
from raylign.trainer.engine.deepspeed_start import prepare_deepspeed
from raylign.trainer.engine.rendezvous import Rendezvous, join
from raylign.trainer.engine.sequence_ranks import SequenceRanks, sequence_ranks
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.engine.zero import ZeroEngine
from raylign.trainer.learner import Learner, MeasuredObjective
from raylign.trainer.models.adapters import add_adapters
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from raylign.trainer.models.sequence_split import SequenceSplit
from raylign.trainer.workers.policy import PolicyObjective
from torch import Tensor, nn

from tests.system.rank_processes import run_ranks
from tests.unit.trainer.fake_gpu_cases import JOBS, _in_float32, _near

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DEADLINE_S = 240
DENOMINATORS = Denominators(40.0, 14.0, 9.0)
OPTIM = OptimConfig(lr=1e-4, weight_decay=0.1, warmup_steps=3)
STEPS = 3
CLOSE = 2e-6
"""Relative gap of a loss and of a whole gradient in float32; sums are made in another order."""


def _model(kind: str, folder: Path, checkpointing: bool = False) -> Any:
    if kind == "scalar":
        return load_scalar_model(
            folder, precision=Precision.float32, new_head_seed=0, gradient_checkpointing=checkpointing
        )
    model = load_causal_lm(folder, precision=Precision.float32, gradient_checkpointing=checkpointing)
    if kind == "adapted":
        add_adapters(model.hf, LoraConfig(rank=4))
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.02)
    return model


def _found(model: Any, objective: Any, batch: Any) -> tuple[float, dict[str, float], dict[str, Tensor]]:
    """Loss, metrics and gradients of one batch; those of a split rank are its share."""
    model.zero_grad(set_to_none=True)
    if isinstance(objective, MeasuredObjective):
        with torch.no_grad():
            objective = objective.given(objective.measure(model, batch, DENOMINATORS).double())
    output = objective(model, batch, DENOMINATORS)
    output.loss.backward()
    metrics = {name: float(metric.total) for name, metric in output.metrics.items()}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(output.loss), metrics, gradients


def _gaps(job: str, folder: Path, split: SequenceSplit, checkpointing: bool) -> dict[str, float]:
    """Of two ranks to one, in this very process."""
    kind, objective, batch = JOBS[job]
    batch = _in_float32(batch)
    model = _model(kind, folder, checkpointing)
    if isinstance(objective, PolicyObjective):
        batch = _near(batch, model)
    loss, metrics, gradients = _found(model, objective, batch)
    model.split = split
    split_loss, split_metrics, shares = _found(model, objective, batch)
    assert shares.keys() == gradients.keys() and gradients
    flat = torch.cat([shares[name].flatten() for name in gradients])
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()])
    alone = float((flat - whole).norm() / whole.norm())
    dist.all_reduce(flat)
    assert metrics.keys() == split_metrics.keys()
    return {
        "loss": abs(split_loss - loss) / max(1.0, abs(loss)),
        "metrics": max(abs(split_metrics[name] - m) / max(1.0, abs(m)) for name, m in metrics.items()),
        "gradient": float((flat - whole).norm() / whole.norm()),
        "alone": alone,  # this rank's share is not the whole: tokens were really split
    }


def _packings(folder: Path, split: SequenceSplit) -> float:
    """A sequence's log-probs alone and beside others, cut at another place each time; in bfloat16 it has to run too."""
    rows = [torch.randint(0, 400, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (2, 3, 5, 17, 31)]
    batches = [TokenBatch.from_sequences([row], [[False] + [True] * (len(row) - 1)]) for row in rows]
    beside = TokenBatch.from_sequences(rows, [[False] + [True] * (len(row) - 1) for row in rows])
    model = _model("causal", folder).eval()
    with torch.no_grad():
        truth = torch.cat([model(batch, temperature=0.7).logprobs for batch in batches])
        model.split = split
        alone = torch.cat([model(batch, temperature=0.7).logprobs for batch in batches])
        together = model(beside, temperature=0.7).logprobs
        low = load_causal_lm(folder, precision=Precision.bfloat16)
        low.split = split
        assert low(beside, temperature=0.7).logprobs.isfinite().all()
    return float(torch.stack([alone - truth, together - truth]).abs().max())


def _losses_main(rank: int, world_size: int, port: int, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(DEADLINE_S - 20, exit=True)  # a hang names its line
    join(Rendezvous(rank, world_size, "127.0.0.1", port, timeout_s=60), Device.cpu)
    prepare_deepspeed()
    split = sequence_ranks(rank, world_size, world_size, timeout_s=60)
    assert split is not None
    record: dict[str, Any] = {job: _gaps(job, Path(folder), split, False) for job in JOBS}
    record["recomputed"] = _gaps("reward model", Path(folder), split, True)
    record["packings"] = _packings(Path(folder), split)
    (Path(out) / f"losses-{rank}.json").write_text(json.dumps(record))


def _objective(model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
    outputs = model(batch.tokens, temperature=1.0)
    loss = -(outputs.logprobs * batch.advantages).sum() / denominators.tokens
    total = MetricSum(outputs.logprobs.detach().sum(), batch.tokens.response_mask.sum())
    return LossOutput(loss, {"logprob": total}, {"worst": -outputs.logprobs.min()})


def _shard(step: int, part: int, parts: int) -> RankShard[PolicyExperience]:
    """What each of `parts` groups of ranks is given."""
    draw = torch.Generator().manual_seed(step)
    rows = [torch.randint(0, 500, (n,), generator=draw).tolist() for n in (9, 17, 5, 12, 23, 8)]
    tokens = TokenBatch.from_sequences(rows, [[False] * 3 + [True] * (len(r) - 3) for r in rows])
    weights = torch.rand(tokens.num_tokens, generator=draw) * tokens.response_mask
    whole = PolicyExperience(tokens, weights, weights, None, weights)
    mine = whole.select(list(range(len(rows)))[part::parts])
    return RankShard((UpdateWindow((mine,), Denominators(float(tokens.response_mask.sum()), float(len(rows)))),))


def _curve(learner: Learner, part: int, parts: int) -> list[dict[str, float]]:
    results = [learner.update(_shard(step, part, parts), _objective) for step in range(STEPS)]
    return [{name: r.metrics[name] for name in ("loss", "grad_norm", "logprob", "worst", "tokens")} for r in results]


def _weights(learner: Learner) -> Tensor:
    return torch.cat([t.detach().flatten().clone() for _, t in learner.engine.gathered_parameters()])


def _updates_main(rank: int, world_size: int, port: int, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(DEADLINE_S - 20, exit=True)
    record: dict[str, Any] = {}
    alone = Learner(TorchEngine(cast(CausalLM, _model("causal", Path(folder))), OPTIM, total_steps=9))
    record["truth"] = _curve(alone, 0, 1)
    for stage in (2, 3):
        config = LearnerConfig(precision=Precision.float32, zero_stage=stage, optim=OPTIM)
        model = _model("causal", Path(folder))
        rendezvous = Rendezvous(rank, world_size, "127.0.0.1", port, timeout_s=60)
        engine = ZeroEngine(model, config, rendezvous, total_steps=9)
        model.split = sequence_ranks(rank, world_size, 2, timeout_s=60)
        learner = Learner(engine, model.split)
        record[f"zero{stage}"] = _curve(learner, rank // 2, world_size // 2)
        record[f"weights{stage}"] = float((_weights(learner) - _weights(alone)).abs().max())
        short = [TokenBatch.from_sequences([[1, 2, 3]], [[False, True, True]])]
        scored = learner.logprobs(short if rank // 2 else short * 2, temperature=1.0)  # the other group runs a filler
        record[f"scored{stage}"] = len(scored)
    (Path(out) / f"updates-{rank}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model") / "tiny", tie=True))


def test_every_loss_has_one_ranks_value_and_gradient(folder: str, tmp_path: Path) -> None:
    run_ranks(_losses_main, 2, folder, str(tmp_path), deadline_s=DEADLINE_S)
    for rank in range(2):
        record = json.loads((tmp_path / f"losses-{rank}.json").read_text())
        assert record.pop("packings") < 1e-5
        assert record.keys() == {*JOBS, "recomputed"}
        wrong = {
            name: gaps for name, gaps in record.items() if max(gaps[g] for g in ("loss", "metrics", "gradient")) > CLOSE
        }
        assert not wrong, wrong
        assert min(gaps["alone"] for gaps in record.values()) > 0.05


def test_groups_of_ranks_train_as_one_process(folder: str, tmp_path: Path) -> None:
    run_ranks(_updates_main, 4, folder, str(tmp_path), deadline_s=DEADLINE_S)
    for rank in range(4):
        record = json.loads((tmp_path / f"updates-{rank}.json").read_text())
        for stage in (2, 3):
            for ours, truth in zip(record[f"zero{stage}"], record["truth"], strict=True):
                assert ours == pytest.approx(truth, rel=1e-5)
            assert record[f"weights{stage}"] < 2e-5
            assert record[f"scored{stage}"] == (1 if rank // 2 else 2)


def test_heads_that_ranks_cannot_share_are_refused() -> None:
    split = SequenceRanks(0, 2, cast(dist.ProcessGroup, None))
    query, key = torch.zeros(4, 4, 8), torch.zeros(4, 1, 8)
    with pytest.raises(ValueError, match="2 ranks cannot share 4 attention heads and 1 key-value heads"):
        split.attention(query, key, key, 8, lambda q, k, v: q)
    assert replace(split, rank=1).own(5, torch.device("cpu")).tolist() == [3, 4, 4]
