"""Ranks 1, 2, 3 x ZeRO 0 to 3 x adapters x recomputed activations x offload: each is plain AdamW in one process.

Losses, gradient norms and every weight after six steps whose batches are uneven. The twenty-step curves of one and two
ranks, with saving and with a gradient that is not a number, are in test_zero_parity.py.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.multiprocessing as mp
from raylign.conf.schema import LearnerConfig, LoraConfig, Offload, Precision
from raylign.data.sample_model import tiny_model
from raylign.trainer.engine.rendezvous import Rendezvous
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.engine.zero import ZeroEngine
from raylign.trainer.models.adapters import add_adapters, start_adapters
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.loading import load_causal_lm

from tests.free_port import free_port
from tests.system.test_zero_ranks import LORA, OPTIM, _train, _weights

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(580)]  # DeepSpeed builds its CPU Adam once

STEPS = 6
DEADLINE_S = 540


class Case(NamedTuple):
    """One cell of the matrix, for a number of ranks."""

    stage: int
    lora: bool
    checkpointing: bool
    offload: bool

    def __str__(self) -> str:
        parts = ("adapters", self.lora), ("recomputed", self.checkpointing), ("offload", self.offload)
        return "-".join([f"zero{self.stage}", *(name for name, on in parts if on)])


CASES = [
    Case(*cell)
    for cell in itertools.product(range(4), (False, True), (False, True), (False, True))
    if cell[0] or not cell[3]  # without partitions nothing is offloaded: refused by the settings
]


def _model(folder: str, case: Case) -> CausalLM:
    model = load_causal_lm(folder, precision=Precision.float32, gradient_checkpointing=case.checkpointing)
    if case.lora:
        add_adapters(model.hf, LORA)
        start_adapters(model.hf, 3)
    return model


def _play(case: Case, folder: str, rendezvous: Rendezvous, truth: dict[str, torch.Tensor]) -> dict[str, Any]:
    config = LearnerConfig(
        precision=Precision.float32,
        zero_stage=case.stage,
        optim=OPTIM,
        lora=LORA if case.lora else LoraConfig(),
        offload_optimizer=Offload.cpu if case.offload else Offload.none,
    )
    engine = ZeroEngine(_model(folder, case), config, rendezvous, total_steps=9)
    curve = _train(engine, 0, STEPS)
    found = _weights(engine)
    assert found.keys() == truth.keys()
    return {"curve": curve, "gap": max(float((found[name] - truth[name]).abs().max()) for name in truth)}


def _rank_main(rank: int, world_size: int, port: int, folder: str, out: str, offload: bool) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(DEADLINE_S - 10, exit=True)  # a hang names its line
    rendezvous = Rendezvous(rank, world_size, "127.0.0.1", port, timeout_s=120)
    truth = {lora: torch.load(Path(out) / f"truth-{lora}.pt", weights_only=True) for lora in (False, True)}
    cases = [case for case in CASES if case.offload == offload]
    record = {str(case): _play(case, folder, rendezvous, truth[case.lora]) for case in cases}
    (Path(out) / f"record-{world_size}-{rank}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model and of what plain AdamW makes of it."""
    made = tmp_path_factory.mktemp("matrix")
    folder = str(tiny_model(made / "model", tie=True))
    for lora in (False, True):
        engine = TorchEngine(_model(folder, Case(0, lora, False, False)), OPTIM, total_steps=9)
        (made / f"truth-{lora}.json").write_text(json.dumps(_train(engine, 0, STEPS)))
        torch.save(_weights(engine), made / f"truth-{lora}.pt")
    return made


def _run(world_size: int, out: Path, *, offload: bool) -> None:
    context = mp.start_processes(
        _rank_main,
        (world_size, free_port(), str(out / "model"), str(out), offload),
        nprocs=world_size,
        join=False,
        start_method="spawn",
    )
    deadline = time.monotonic() + DEADLINE_S
    try:
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, f"{world_size} ranks did not finish in {DEADLINE_S} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


@pytest.mark.parametrize("offload", [False, True], ids=["", "offload"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_cell_is_plain_adamw(out: Path, world_size: int, offload: bool) -> None:
    _run(world_size, out, offload=offload)
    cases = [case for case in CASES if case.offload == offload]
    truths = {lora: json.loads((out / f"truth-{lora}.json").read_text()) for lora in (False, True)}
    wrong = []
    for rank in range(world_size):
        record = json.loads((out / f"record-{world_size}-{rank}.json").read_text())
        assert len(record) == len(cases) == (12 if offload else 16)
        for case in cases:
            found, truth = record[str(case)], truths[case.lora]
            same = all(ours == pytest.approx(true, rel=1e-5) for ours, true in zip(found["curve"], truth, strict=True))
            if not same or found["gap"] > 2e-5:
                wrong.append((rank, str(case), found, truth))
    assert not wrong, wrong
    moved = [abs(a - b) for a, b in zip(truths[False][0], truths[False][-1], strict=True)]
    assert min(moved) > 1e-3, "nothing was trained"
