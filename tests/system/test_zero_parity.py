"""Every ZeRO stage on one or two ranks is the same optimizer as plain AdamW in one process: losses, norms, weights.

The batches have uneven sequences, some with a prompt in common, the number of micro-batches changes from step to step,
one rank once has only fillers, and one step's gradient is not a number on one rank: it must be skipped on all. Once the
optimizer's state goes to the host and comes back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from raylign.conf.schema import LearnerConfig, LoraConfig, OptimConfig, Precision, Schedule
from raylign.data.sample_model import tiny_model
from raylign.data.types import Denominators, PolicyExperience, RankShard, TokenBatch, UpdateWindow
from raylign.trainer.algorithms.base import LossOutput, MetricSum
from raylign.trainer.engine.base import Engine, EngineStateError, moments
from raylign.trainer.engine.rendezvous import Rendezvous
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.engine.zero import ZeroEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.adapters import add_adapters, initial_adapters, start_adapters
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.loading import load_causal_lm, stored_weights
from raylign.trainer.models.lora import is_adapter
from torch import nn

from tests.system.rank_processes import run_ranks

pytestmark = [pytest.mark.system, pytest.mark.slow]

NUM_STEPS = 20
POISONED_STEP = 7
FILLER_STEP = 4
AWAY_STEP = 5  # before it the state has been on the host, as on a card that engines share
NUM_SEQUENCES = 7
STAGES = (0, 1, 2, 3)
OPTIM = OptimConfig(lr=1e-3, warmup_steps=3, schedule=Schedule.cosine, weight_decay=0.1, max_grad_norm=1.0)
DEADLINE_S = 140
LORA = LoraConfig(rank=4, alpha=8.0)
LORA_STEPS = 9
LORA_SEED = 3
TRAINED_BY_LORA = 2 * 4 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 256))


def _step_shard(step: int, rank: int, world_size: int) -> RankShard[PolicyExperience]:
    """This rank's part of one step, whose whole is the same for any number of ranks."""
    generator = torch.Generator().manual_seed(step)
    prompts = torch.randint(0, 500, (3, 5), generator=generator).tolist()
    answers = torch.randint(2, 25, (NUM_SEQUENCES,), generator=generator).tolist()
    rows = [
        prompts[s % 3] + torch.randint(0, 500, (n,), generator=generator).tolist() for s, n in enumerate(answers)
    ]  # sequences of one prompt share its computation wherever a micro-batch has two of them
    tokens = TokenBatch.from_sequences(rows, [[False] * 5 + [True] * n for n in answers])
    advantages = torch.randn(tokens.num_tokens, generator=generator) * tokens.response_mask
    whole = PolicyExperience(tokens, advantages, advantages, None, advantages)
    mine = list(range(NUM_SEQUENCES))[rank::world_size]
    num_micro_batches = 1 + step % 3
    parts = [mine[i::num_micro_batches] for i in range(num_micro_batches)]
    if step == FILLER_STEP and rank == world_size - 1:
        parts = [[], mine] if num_micro_batches == 2 else [mine] + [[]] * (num_micro_batches - 1)
    micro_batches = tuple(whole.select(part) if part else whole.filler() for part in parts)
    denominators = Denominators(float(tokens.response_mask.sum()), float(NUM_SEQUENCES))
    return RankShard((UpdateWindow(micro_batches, denominators),))


def _objective(model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
    outputs = model(batch.tokens, temperature=0.9, with_entropy_grad=True)
    mask = batch.tokens.response_mask
    # both terms large enough that a wrong division shows
    loss = -(outputs.logprobs * (1 + batch.advantages) * mask).sum() - 0.1 * outputs.entropy.sum()
    return LossOutput(loss / denominators.tokens, {"entropy": MetricSum(outputs.entropy.detach().sum(), mask.sum())})


def _poisoned(model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
    output = _objective(model, batch, denominators)
    return LossOutput(output.loss * float("nan"), output.metrics)


def _train(engine: Engine, first: int, last: int) -> list[dict[str, float]]:
    learner = Learner(engine)
    curve = []
    for step in range(first, last):
        if step == AWAY_STEP and isinstance(engine, ZeroEngine):
            _there_and_back(engine)
        poisoned = step == POISONED_STEP and engine.rank == engine.world_size - 1
        result = learner.update(
            _step_shard(step, engine.rank, engine.world_size), _poisoned if poisoned else _objective
        )
        curve.append({**result.metrics, "applied": result.steps_applied, "skipped": result.steps_skipped})
    return curve


def _there_and_back(engine: ZeroEngine) -> None:
    """The memory is really gone meanwhile, and a training pass is refused on every rank."""
    engine.offload_state()
    kept = list(moments(engine._adamw))
    assert kept and not any(moment.untyped_storage().nbytes() for moment in kept)
    with pytest.raises(EngineStateError, match="is on the host"):
        engine.backward(torch.zeros(()), last=True)
    engine.reload_state()


def _weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().float().clone() for name, tensor in engine.gathered_parameters()}


def _adapted(folder: str | Path, precision: Precision, checkpointing: bool = False) -> CausalLM:
    """With adapters as a rank starts them."""
    model = load_causal_lm(folder, precision=precision, gradient_checkpointing=checkpointing)
    add_adapters(model.hf, LORA)
    start_adapters(model.hf, LORA_SEED)
    return model


def _zero_adapted(folder: str, rendezvous: Rendezvous, stage: int, precision: Precision) -> ZeroEngine:
    model = _adapted(folder, precision, checkpointing=stage == 2)
    config = LearnerConfig(precision=precision, zero_stage=stage, optim=OPTIM, lora=LORA)
    return ZeroEngine(model, config, rendezvous, total_steps=NUM_STEPS)


def _trained_with_adapters(folder: str, rendezvous: Rendezvous, stage: int) -> dict[str, Any]:
    """The curve, what the optimizer holds, and whether the frozen weights are still the folder's, bit for bit."""
    engine = _zero_adapted(folder, rendezvous, stage, Precision.float32)
    curve = _train(engine, 0, LORA_STEPS)
    weights, stored = _weights(engine), dict(stored_weights(folder))
    return {
        "curve": curve,
        "held": sum(master.numel() for master in engine._masters()),
        "frozen_kept": _equal(weights, stored),
        "adapters": {name: float(t.double().square().sum()) for name, t in weights.items() if is_adapter(name)},
    }


def _adapter_masters(folder: str, rendezvous: Rendezvous, stage: int) -> dict[str, Any]:
    """A bfloat16 engine as a rank starts it: every A has its unrounded draw as master, frozen weights have none."""
    engine = _zero_adapted(folder, rendezvous, stage, Precision.bfloat16)
    hf = engine.module.get_submodule("hf")
    count = engine.set_masters([*stored_weights(folder), *initial_adapters(hf, LORA_SEED)])
    drawn = dict(initial_adapters(hf, LORA_SEED))
    masters = dict(hf.named_parameters())
    kept = all(torch.equal(safe_get_full_fp32_param(masters[n]), t) for n, t in drawn.items()) if stage else True
    rounded = all(torch.equal(t, t.bfloat16().float()) for t in drawn.values())
    frozen = {n: t for n, t in _weights(engine).items() if not is_adapter(n)}
    return {
        "count": count,
        "kept": kept,
        "rounded": rounded,
        "frozen": _equal({n: t.bfloat16().float() for n, t in stored_weights(folder)}, frozen),
    }


def _zero(folder: str, rendezvous: Rendezvous, stage: int, precision: Precision, checkpointing: bool) -> ZeroEngine:
    model = load_causal_lm(folder, precision=precision, gradient_checkpointing=checkpointing)
    config = LearnerConfig(precision=precision, zero_stage=stage, optim=OPTIM)
    return ZeroEngine(model, config, rendezvous, total_steps=NUM_STEPS)


def _resumed_gap(start: Callable[[], ZeroEngine], state: Path) -> dict[str, Any]:
    """Train 4 steps, save, 3 more; then load in a fresh engine and do those 3 again."""
    engine = start()
    _train(engine, 0, 4)
    engine.offload_state()
    engine.save_state(state)  # as it is saved while engines have the card
    engine.reload_state()
    straight = _train(engine, 4, 7)
    expected = _weights(engine)
    again = start()
    again.load_state(state)
    resumed = _train(again, 4, 7)
    same_weights = all(torch.equal(tensor, expected[name]) for name, tensor in _weights(again).items())
    same_curve = [(c["loss"], c["grad_norm"], c["lr"]) for c in straight] == [
        (c["loss"], c["grad_norm"], c["lr"]) for c in resumed
    ]
    return {"same_weights": same_weights, "same_curve": same_curve}


def _masters_from_disk(folder: str, rendezvous: Rendezvous, stage: int) -> dict[str, Any]:
    """A bfloat16 engine whose masters were set from the float32 folder: what it holds against what is stored."""
    engine = _zero(folder, rendezvous, stage, Precision.bfloat16, checkpointing=False)
    count = engine.set_masters(stored_weights(folder))
    stored = dict(stored_weights(folder))
    working = all(torch.equal(t, stored[n].bfloat16().float()) for n, t in _weights(engine).items())
    rounded = {n: t.bfloat16().float() for n, t in stored.items()}
    masters = {n.removeprefix("hf."): safe_get_full_fp32_param(p) for n, p in engine.module.named_parameters()}
    unrounded = all(torch.equal(masters[n], t) for n, t in stored.items()) if stage else True
    return {"count": count, "working": working, "unrounded": unrounded, "differ": not _equal(rounded, stored)}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def _uneven_logprobs(engine: Engine) -> list[float]:
    """Two batches on rank 0, none elsewhere: under ZeRO-3 the others must still join every gather."""
    tokens = _step_shard(0, 0, 1).windows[0].micro_batches[0].tokens
    batches = [tokens.select([0, 3]), tokens.select([2])] if engine.rank == 0 else []
    return [float(t.double().sum()) for t in Learner(engine).logprobs(batches, temperature=0.7)]


def _rank_main(rank: int, world_size: int, port: int, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    rendezvous = Rendezvous(rank, world_size, "127.0.0.1", port, timeout_s=60)
    record: dict[str, Any] = {}
    for stage in STAGES:
        engine = _zero(folder, rendezvous, stage, Precision.float32, checkpointing=stage == 3)
        curve = _train(engine, 0, NUM_STEPS)
        torch.save(_weights(engine), Path(out) / f"weights-{world_size}-{rank}-{stage}.pt")
        record[str(stage)] = {"curve": curve, "logprobs": _uneven_logprobs(engine)}
        record[f"lora-{stage}"] = _trained_with_adapters(folder, rendezvous, stage)
    if world_size == 2:
        for stage in STAGES:
            for precision in Precision:
                start = partial(_zero, folder, rendezvous, stage, precision, checkpointing=False)
                record[f"resume-{stage}-{precision.value}"] = _resumed_gap(
                    start, Path(out) / f"state-{stage}-{precision.value}"
                )
            start = partial(_zero_adapted, folder, rendezvous, stage, Precision.bfloat16)
            record[f"resume-lora-{stage}"] = _resumed_gap(start, Path(out) / f"state-lora-{stage}")
            record[f"masters-{stage}"] = _masters_from_disk(folder, rendezvous, stage)
            record[f"masters-lora-{stage}"] = _adapter_masters(folder, rendezvous, stage)
    engine.barrier()
    engine.close()
    (Path(out) / f"record-{world_size}-{rank}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    model = tiny_model(folder / "model", tie=True)
    reference = TorchEngine(load_causal_lm(model, precision=Precision.float32), OPTIM, total_steps=NUM_STEPS)
    record = {"curve": _train(reference, 0, NUM_STEPS), "logprobs": _uneven_logprobs(reference)}
    adapted = TorchEngine(_adapted(model, Precision.float32), OPTIM, total_steps=NUM_STEPS)
    record["lora"] = _train(adapted, 0, LORA_STEPS)
    norms = {name: float(t.double().square().sum()) for name, t in _weights(adapted).items() if is_adapter(name)}
    record["lora_adapters"] = norms
    (folder / "reference.json").write_text(json.dumps(record))
    torch.save(_weights(reference), folder / "reference.pt")
    for world_size in (1, 2):
        run_ranks(_rank_main, world_size, str(model), str(folder), deadline_s=DEADLINE_S)
    return folder


def _record(out: Path, world_size: int, rank: int = 0) -> dict[str, Any]:
    return json.loads((out / f"record-{world_size}-{rank}.json").read_text())


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_twenty_steps_equal_plain_adamw(out: Path, stage: int, world_size: int) -> None:
    expected = json.loads((out / "reference.json").read_text())
    for rank in range(world_size):
        got = _record(out, world_size, rank)[str(stage)]
        for step, (ours, truth) in enumerate(zip(got["curve"], expected["curve"], strict=True)):
            if step == POISONED_STEP:
                assert (ours["applied"], ours["skipped"]) == (truth["applied"], truth["skipped"]) == (0, 1)
                continue
            for name in ("loss", "entropy", "grad_norm", "lr", "applied"):
                assert ours[name] == pytest.approx(truth[name], rel=1e-5), f"step {step}, {name}, rank {rank}"
    first, last = expected["curve"][0]["loss"], expected["curve"][-1]["loss"]
    assert abs(first - last) > 0.1, "the curve is flat: nothing was trained"


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_every_rank_reads_out_the_weights_of_plain_adamw(out: Path, stage: int, world_size: int) -> None:
    expected = torch.load(out / "reference.pt", weights_only=True)
    for rank in range(world_size):
        got = torch.load(out / f"weights-{world_size}-{rank}-{stage}.pt", weights_only=True)
        assert list(got) == list(expected)
        for name, tensor in got.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_may_have_different_numbers_of_forward_batches(out: Path, stage: int) -> None:
    expected = json.loads((out / "reference.json").read_text())["logprobs"]
    assert _record(out, 2)[str(stage)]["logprobs"] == pytest.approx(expected, rel=1e-4)
    assert _record(out, 2, rank=1)[str(stage)]["logprobs"] == []


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("stage", STAGES)
def test_saved_and_continued_is_uninterrupted_bit_for_bit(out: Path, stage: int, precision: Precision) -> None:
    for rank in range(2):
        resumed = _record(out, 2, rank)[f"resume-{stage}-{precision.value}"]
        assert resumed == {"same_weights": True, "same_curve": True}


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_masters_start_from_the_unrounded_folder(out: Path, stage: int) -> None:
    for rank in range(2):
        found = _record(out, 2, rank)[f"masters-{stage}"]
        assert found == {"count": 20, "working": True, "unrounded": True, "differ": True}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_adapters_train_as_by_plain_adamw_and_nothing_else_does(out: Path, stage: int, world_size: int) -> None:
    reference = json.loads((out / "reference.json").read_text())
    records = [_record(out, world_size, rank)[f"lora-{stage}"] for rank in range(world_size)]
    for got in records:
        for step, (ours, truth) in enumerate(zip(got["curve"], reference["lora"], strict=True)):
            if step != POISONED_STEP:
                for name in ("loss", "entropy", "grad_norm", "lr"):
                    assert ours[name] == pytest.approx(truth[name], rel=1e-5), f"step {step}, {name}"
            assert ours["applied"] == truth["applied"] == (step != POISONED_STEP)
        assert got["frozen_kept"] and got["adapters"] == pytest.approx(reference["lora_adapters"], rel=1e-4)
    held = sum(got["held"] for got in records) / (world_size if stage == 0 else 1)
    assert TRAINED_BY_LORA <= held < 1.01 * TRAINED_BY_LORA  # shards are filled up to equal lengths


@pytest.mark.parametrize("stage", STAGES)
def test_adapters_continue_bit_for_bit_and_keep_unrounded_masters(out: Path, stage: int) -> None:
    for rank in range(2):
        record = _record(out, 2, rank)
        assert record[f"resume-lora-{stage}"] == {"same_weights": True, "same_curve": True}
        assert record[f"masters-lora-{stage}"] == {"count": 14, "kept": True, "rounded": False, "frozen": True}
