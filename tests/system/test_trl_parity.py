"""`raylign train` and TRL's trainers on the same rows and model folder: the same loss at every step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.trl_parity import LIMIT, main

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_twenty_steps_of_every_algorithm_have_trls_losses(form: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    assert main(["--form", form, "--lr", "1e-3", "--json", str(found)]) == 0
    runs = json.loads(found.read_text(encoding="utf-8"))
    assert [run["algorithm"] for run in runs] == ["sft", "rm", "dpo", "kto"]
    for run in runs:
        assert len(run["ours"]) == 20 and max(run["gaps"]) <= LIMIT
        assert abs(run["ours"][-1] / run["ours"][0] - 1) > 1e-3  # it has learned something
