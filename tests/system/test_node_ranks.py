"""ZeRO-3 whose ranks of a node keep the weights among themselves (hpZ) is plain AdamW, through saving and loading."""

from __future__ import annotations

import faulthandler
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from raylign.conf.schema import LearnerConfig, LoraConfig, Precision
from raylign.data.sample_model import tiny_model
from raylign.trainer.engine.rendezvous import Rendezvous
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.engine.zero import ZeroEngine

from tests.system.rank_processes import run_ranks
from tests.system.test_zero_ranks import LORA, OPTIM, _model, _train, _weights

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(300)]

RANKS, NODE = 4, 2
DEADLINE_S = 280


def _rank_main(rank: int, world_size: int, port: int, folder: str, out: str, lora: bool) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(DEADLINE_S - 20, exit=True)
    from deepspeed.utils import groups

    rendezvous = Rendezvous(rank, world_size, "127.0.0.1", port, timeout_s=120)
    config = LearnerConfig(
        precision=Precision.float32,
        zero_stage=3,
        zero_node_ranks=NODE,
        optim=OPTIM,
        lora=LORA if lora else LoraConfig(),
    )

    def engine() -> ZeroEngine:
        groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # one engine a process is what it is made for
        return ZeroEngine(_model(folder, Precision.float32, lora), config, rendezvous, total_steps=9)

    first, copies = engine(), list[int]()
    expire = first._optimizer.invalidate_secondary_tensor

    def counted() -> None:
        copies.append(sum(p.ds_secondary_tensor is not None for p in first.module.parameters()))
        expire()

    first._optimizer.invalidate_secondary_tensor = counted
    record: dict[str, Any] = {"curve": _train(first, 0, 3), "copies": copies}
    first.save_state(Path(out) / f"state-{lora}")
    again = engine()
    _train(again, 5, 7)  # other weights, copied too, before the saved ones come
    again.load_state(Path(out) / f"state-{lora}")
    record["curve"] += _train(again, 3, 6)
    if rank == 0:
        torch.save(_weights(again), Path(out) / "weights.pt")
    else:
        _weights(again)
    (Path(out) / f"record-{rank}.json").write_text(json.dumps(record))


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapters"])
def test_four_ranks_of_two_nodes_are_plain_adamw(tmp_path: Path, lora: bool) -> None:
    folder = str(tiny_model(tmp_path / "model", tie=True))
    plain = TorchEngine(_model(folder, Precision.float32, lora), OPTIM, total_steps=9)
    curve, weights = _train(plain, 0, 6), _weights(plain)
    run_ranks(_rank_main, RANKS, folder, str(tmp_path), lora, deadline_s=DEADLINE_S)
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert max(float((found[name] - weights[name]).abs().max()) for name in weights) < 2e-5
    for rank in range(RANKS):
        record = json.loads((tmp_path / f"record-{rank}.json").read_text())
        assert len(record["copies"]) == 3 and min(record["copies"]) > 10, "weights have no copy: nothing was tried"
        for ours, truth in zip(record["curve"], curve, strict=True):
            assert ours == pytest.approx(truth, rel=1e-5)
