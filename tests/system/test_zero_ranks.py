"""What ZeRO does with ranks that do not divide a weight, with offloaded optimizer state, and before it partitions.

The 20-step curves of one and two ranks are in test_zero_parity.py; its helpers are used here.
"""

from __future__ import annotations

import faulthandler
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from raylign.conf.errors import ModelLoadError
from raylign.conf.schema import Device, LearnerConfig, LoraConfig, Offload, OptimConfig, Precision
from raylign.data.sample_model import tiny_model
from raylign.data.types import Denominators, PolicyExperience, RankShard, TokenBatch, UpdateWindow
from raylign.trainer.algorithms.base import LossOutput
from raylign.trainer.engine.base import Engine
from raylign.trainer.engine.rendezvous import Rendezvous
from raylign.trainer.engine.sharded import ShardedEngine
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.engine.zero import ZeroEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.adapters import add_adapters, initial_adapters, start_adapters
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.loading import load_causal_lm, stored_weights
from raylign.trainer.models.packing_check import check_model
from torch import nn

from tests.system.rank_processes import run_ranks

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(360)]  # DeepSpeed builds its CPU Adam once

RANKS = 3  # divides none of the tiny model's weights: 128 = 3 x 43 - 1
# Small first steps: Adam turns the rounding of a gradient near zero into its sign, times the rate.
OPTIM = OptimConfig(lr=1e-4, weight_decay=0.1, warmup_steps=3)
LORA = LoraConfig(rank=4, alpha=8.0)
DEADLINE_S = 280
OFFLOAD_STAGES = (1, 2, 3)


def _objective(model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
    outputs = model(batch.tokens, temperature=1.0)
    return LossOutput(-(outputs.logprobs * batch.advantages).sum() / denominators.tokens, {})


def _shard(step: int, rank: int, world_size: int) -> RankShard[PolicyExperience]:
    draw = torch.Generator().manual_seed(step)
    rows = [torch.randint(0, 500, (n,), generator=draw).tolist() for n in (9, 17, 5, 12, 23, 8)]
    tokens = TokenBatch.from_sequences(rows, [[False] * 3 + [True] * (len(r) - 3) for r in rows])
    weights = torch.rand(tokens.num_tokens, generator=draw) * tokens.response_mask
    whole = PolicyExperience(tokens, weights, weights, None, weights)
    part = whole.select(list(range(len(rows)))[rank::world_size])
    return RankShard((UpdateWindow((part,), Denominators(float(tokens.response_mask.sum()), float(len(rows)))),))


def _train(engine: Engine, first: int, last: int) -> list[list[float]]:
    learner = Learner(engine)
    results = [learner.update(_shard(s, engine.rank, engine.world_size), _objective) for s in range(first, last)]
    return [[r.metrics["loss"], r.metrics["grad_norm"]] for r in results]


def _model(folder: str, precision: Precision, lora: bool) -> CausalLM:
    model = load_causal_lm(folder, precision=precision)
    if lora:
        add_adapters(model.hf, LORA)
        start_adapters(model.hf, 3)
    return model


def _weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().float().clone() for name, tensor in engine.gathered_parameters()}


def _masters(folder: str, rendezvous: Rendezvous, lora: bool) -> dict[str, Any]:
    """bfloat16 masters start unrounded though no rank holds a whole number of a weight's rows."""
    config = LearnerConfig(precision=Precision.bfloat16, zero_stage=3, optim=OPTIM, lora=LORA if lora else LoraConfig())
    engine = ZeroEngine(_model(folder, Precision.bfloat16, lora), config, rendezvous, total_steps=9)
    hf = engine.module.get_submodule("hf")
    wanted = dict(initial_adapters(hf, 3)) if lora else dict(stored_weights(folder))
    count = engine.set_masters(wanted.items())
    named = dict(hf.named_parameters())
    held = {name: safe_get_full_fp32_param(named[name]) for name in wanted}
    return {"count": count, "exact": all(torch.equal(held[name], tensor) for name, tensor in wanted.items())}


def _offloaded(folder: str, rendezvous: Rendezvous, stage: int, out: Path) -> dict[str, Any]:
    """Saved and resumed with the optimizer on the host; DeepSpeed's CPU Adam is a CPU optimizer, so it runs here."""
    config = LearnerConfig(precision=Precision.bfloat16, zero_stage=stage, optim=OPTIM, offload_optimizer=Offload.cpu)
    start = partial(ZeroEngine, config=config, rendezvous=rendezvous, total_steps=9)
    engine = start(_model(folder, Precision.bfloat16, lora=False))
    _train(engine, 0, 3)
    engine.save_state(out / f"offload-{stage}")
    straight, expected = _train(engine, 3, 6), _weights(engine)
    again = start(_model(folder, Precision.bfloat16, lora=False))
    again.load_state(out / f"offload-{stage}")
    resumed = _train(again, 3, 6)
    same = all(torch.equal(tensor, expected[name]) for name, tensor in _weights(again).items())
    return {"same_curve": straight == resumed, "same_weights": same, "moved": straight[0] != straight[-1]}


def _partitioned_first(folder: str, rendezvous: Rendezvous) -> dict[str, Any]:
    """`initialize` meets a model of which this rank holds its third."""
    model = _model(folder, Precision.float32, lora=False)
    whole = sum(p.numel() for p in model.parameters())
    seen: list[int] = []
    import deepspeed

    initialize = deepspeed.initialize

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(sum(p.data.numel() for p in kwargs["model"].parameters()))  # what is left whole
        seen.append(sum(p.ds_tensor.numel() for p in kwargs["model"].parameters()))
        return initialize(*args, **kwargs)

    deepspeed.initialize = watched
    try:
        config = LearnerConfig(precision=Precision.float32, zero_stage=3, optim=OPTIM)
        engine = ZeroEngine(model, config, rendezvous, total_steps=9)
    finally:
        deepspeed.initialize = initialize
    tried = _tried_in_parts(model, folder)
    return {"whole": whole, "left": seen[0], "held": seen[1], "tried": tried, "curve": _train(engine, 0, 4)}


def _tried_in_parts(model: CausalLM, folder: str) -> str:
    """What the check of a loaded model says of a partitioned one, on all ranks together: right, then with a leak."""
    check_model(model.hf, folder, with_head=False)

    def leak(_module: nn.Module, _args: Any, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (output[0] + output[0].mean(1, keepdim=True), *output[1:])  # each token sees every other one's

    hook = model.hf.base_model.layers[0].self_attn.register_forward_hook(leak)
    try:
        check_model(model.hf, folder, with_head=False)
    except ModelLoadError as error:
        return str(error)
    finally:
        hook.remove()
    return ""


def _sharded_reference(folder: str, rendezvous: Rendezvous) -> dict[str, Any]:
    """A frozen model in three parts gives the log-probs of the whole one; ranks have different numbers of batches."""
    model = _model(folder, Precision.float32, lora=False)
    whole = sum(p.numel() for p in model.parameters())
    engine = ShardedEngine(model, Precision.float32, rendezvous, device=Device.cpu)
    tokens = _shard(0, 0, 1).windows[0].micro_batches[0].tokens
    batches = [tokens.select([0, 3]), tokens.select([2])] if engine.rank == 0 else [tokens.select([engine.rank])]
    logprobs = [p.tolist() for p in Learner(engine).logprobs(batches, temperature=0.7)]
    held = sum(p.ds_tensor.numel() for p in engine.module.parameters())
    return {"logprobs": logprobs, "share": held / whole}


def _rank_main(rank: int, world_size: int, port: int, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(DEADLINE_S - 20, exit=True)  # a hang names its line
    rendezvous = Rendezvous(rank, world_size, "127.0.0.1", port, timeout_s=270)
    record: dict[str, Any] = {"init": _partitioned_first(folder, rendezvous)}
    record["sharded"] = _sharded_reference(folder, rendezvous)
    for lora in (False, True):
        record[f"masters-{lora}"] = _masters(folder, rendezvous, lora)
    for stage in OFFLOAD_STAGES:
        record[f"offload-{stage}"] = _offloaded(folder, rendezvous, stage, Path(out))
    (Path(out) / f"record-{rank}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", tie=True)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, model: Path) -> list[dict[str, Any]]:
    out, folder = tmp_path_factory.mktemp("zero3"), model
    engine = TorchEngine(_model(str(folder), Precision.float32, lora=False), OPTIM, total_steps=9)
    (out / "truth.json").write_text(json.dumps(_train(engine, 0, 4)))
    run_ranks(_rank_main, RANKS, str(folder), str(out), deadline_s=DEADLINE_S)
    truth = json.loads((out / "truth.json").read_text())
    return [{**json.loads((out / f"record-{rank}.json").read_text()), "truth": truth} for rank in range(RANKS)]


def test_zero3_holds_its_part_before_the_engine_starts_and_trains_as_plain_adamw(
    records: list[dict[str, Any]],
) -> None:
    for record in records:
        init = record["init"]
        assert init["left"] < 0.01 * init["whole"], "a rank would hold the whole model on its card"
        assert "a longer sequence in the batch changes another one's states" in init["tried"]
        assert init["held"] == pytest.approx(init["whole"] / RANKS, rel=0.01)
        for ours, truth in zip(init["curve"], record["truth"], strict=True):
            assert ours == pytest.approx(truth, rel=1e-5)


def test_a_sharded_reference_scores_as_the_whole_one(records: list[dict[str, Any]], model: Path) -> None:
    whole = Learner(TorchEngine(_model(str(model), Precision.float32, lora=False), OPTIM, total_steps=1))
    tokens = _shard(0, 0, 1).windows[0].micro_batches[0].tokens
    for rank, record in enumerate(records):
        picked = [[0, 3], [2]] if rank == 0 else [[rank]]
        truth = whole.logprobs([tokens.select(rows) for rows in picked], temperature=0.7)
        assert record["sharded"]["share"] == pytest.approx(1 / RANKS, rel=0.01)
        for ours, true in zip(record["sharded"]["logprobs"], truth, strict=True):
            assert ours == pytest.approx(true.tolist(), abs=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_masters_are_exact_where_ranks_do_not_divide_the_weights(records: list[dict[str, Any]], lora: bool) -> None:
    assert all(record[f"masters-{lora}"] == {"count": 14 if lora else 20, "exact": True} for record in records)


@pytest.mark.parametrize("stage", OFFLOAD_STAGES)
def test_offloaded_optimizer_state_continues_bit_for_bit(records: list[dict[str, Any]], stage: int) -> None:
    for record in records:
        assert record[f"offload-{stage}"] == {"same_curve": True, "same_weights": True, "moved": True}
