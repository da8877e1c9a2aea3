"""A model by its name on a hub, as whole runs: downloaded by the first, its revision kept by the one that resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from raylign.records.manifest import read_manifest
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths

from tests.unit.app.hub_server import hub

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(600)]

FIRST, SECOND = "1" * 40, "2" * 40


def test_a_run_from_the_hub_goes_on_with_its_revision(tmp_path: Path, tiny_model_dir: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny_model_dir.iterdir() if path.is_file()}
    rows = ({"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(16))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable, "-m", "raylign", "train", "+experiment=sft_tiny_cpu", "policy.model=lab/tiny",
        "data.train=rows.jsonl", "name=mine", "tracking.wandb=disabled",
    ]  # fmt: skip
    with hub({"lab/tiny": {FIRST: files}}) as served:
        online = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        env = online | {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "hf")}
        said = []
        for steps in (1, 2):
            done = subprocess.run(
                [*command, f"num_steps={steps}"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            said.append(done.stderr)
            served.models["lab/tiny"][SECOND] = {}  # the hub has moved on
    assert f"downloading revision {FIRST}" in said[0] and "downloading" not in said[1]
    run = RunPaths(tmp_path / "runs" / "mine")
    assert [row.step for row in read_history(run.metrics).rows if row.step] == [1, 2]
    starts = read_manifest(run.manifest).starts
    assert [start.hub_models for start in starts] == [{"policy": f"lab/tiny@{FIRST}"}] * 2
    card = (run.export / "step-2" / "README.md").read_text()
    assert 'base_model: "lab/tiny"' in card and str(tmp_path) not in card
