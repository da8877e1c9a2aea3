"""Traces of the updates that were asked for, and of no others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from raylign.trainer.workers.profiling import UpdateProfiler


def test_the_updates_asked_for_are_recorded_with_their_operators(tmp_path: Path) -> None:
    profiler = UpdateProfiler([2, 3], tmp_path / "profile", "policy-0")
    for _ in range(4):
        with profiler.update():
            torch.ones(3, 3) @ torch.ones(3, 3)
    files = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert files == ["policy-0-update-2.json.gz", "policy-0-update-3.json.gz"]
    with gzip.open(tmp_path / "profile" / files[0], "rt", encoding="utf-8") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("aten::matmul") == 1, "one update's, not two"


def test_a_trace_that_cannot_be_written_costs_the_update_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("in the way")
    done = []
    with UpdateProfiler([1], tmp_path / "profile", "policy-0").update():
        done.append(1)
    assert done and "the profile of update 1 was not written" in caplog.text


def test_an_update_that_fails_is_not_hidden_by_its_profile(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="not finite"),
        UpdateProfiler([1], tmp_path / "profile", "policy-0").update(),
    ):
        raise RuntimeError("the gradient is not finite")
