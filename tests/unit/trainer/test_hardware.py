"""The figures of a GPU, from what torch would say of one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from raylign.conf.schema import Precision
from raylign.data.sample_model import tiny_model
from raylign.trainer.hardware import hardware_figures
from raylign.trainer.models.loading import load_causal_lm


def test_an_updates_share_of_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(tiny_model(tmp_path / "m", tie=True), precision=Precision.float32)
    engine = SimpleNamespace(device=torch.device("cuda"), world_size=4, module=model)
    resets: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 41_500_000_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    found = hardware_figures(engine, tokens=8e9, seconds=2.0)
    parameters = sum(p.numel() for p in model.parameters())
    assert found["mfu"] == pytest.approx(6 * parameters * 8e9 / (2.0 * 4 * 989e12))
    assert (found["tokens_per_s_per_gpu"], found["memory_peak_gb"], len(resets)) == (1e9, 41.5, 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card of next year")
    assert "mfu" not in hardware_figures(engine, tokens=8e9, seconds=2.0)
    engine.device = torch.device("cpu")
    assert hardware_figures(engine, tokens=8e9, seconds=2.0) == {}
