"""State that waits on the host comes back bit for bit, with every view of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from raylign.conf.schema import OptimConfig
from raylign.trainer.engine.base import EngineStateError, moments
from raylign.trainer.engine.offload import OnHost
from raylign.trainer.engine.torch_engine import TorchEngine
from torch import nn

CPU = torch.device("cpu")


def test_memory_is_free_meanwhile_and_views_are_views_afterwards() -> None:
    whole = torch.randn(100)
    view, copy = whole[10:40].view(5, 6).t(), whole.clone()
    away = OnHost()
    assert away.take([view, whole], CPU) == 400 and away  # one storage, once
    assert whole.untyped_storage().nbytes() == 0
    assert torch.equal(away.read(view), copy[10:40].view(5, 6).t())
    other = torch.ones(3)
    assert away.read(other).data_ptr() == other.data_ptr()  # what is not away is read where it is
    away.give_back()
    assert torch.equal(whole, copy) and not away
    whole[10] = 7
    assert view[0, 0] == 7
    assert away.take([whole], torch.device("meta")) == 0  # another device's memory is not ours to free


def stepped(engine: TorchEngine, times: int) -> None:
    for i in range(times):
        engine.backward(engine.module(torch.full((1, 4), i + 1.0)).square().sum(), last=True)
        engine.step()


def engine() -> TorchEngine:
    torch.manual_seed(0)
    return TorchEngine(nn.Linear(4, 3), OptimConfig(lr=1e-2), total_steps=9)


def test_a_state_that_was_away_trains_and_is_saved_as_if_it_had_not_been(tmp_path: Path) -> None:
    straight, moved = engine(), engine()
    for one in (straight, moved):
        stepped(one, 3)
    moved.offload_state()
    assert not any(moment.untyped_storage().nbytes() for moment in moments(moved._optimizer))
    for call in (lambda: stepped(moved, 1), lambda: moved.load_state(tmp_path)):
        with pytest.raises(EngineStateError, match=r"is on the host; reload_state\(\) must come first"):
            call()
    moved.module(torch.ones(1, 4))  # a forward pass needs none of it
    moved.save_state(tmp_path / "moved")
    straight.save_state(tmp_path / "straight")
    saved = [(tmp_path / name / "rank-00000.safetensors").read_bytes() for name in ("moved", "straight")]
    assert len(saved[0]) == len(saved[1]) and saved[0][-200:] == saved[1][-200:]
    moved.reload_state()
    resumed = engine()
    resumed.load_state(tmp_path / "moved")
    resumed.offload_state()  # what was read from a file can leave too
    resumed.reload_state()
    for one in (straight, moved, resumed):
        stepped(one, 2)
    assert torch.equal(straight.module.weight, resumed.module.weight)
    assert torch.equal(straight.module.weight, moved.module.weight)
