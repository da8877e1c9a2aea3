"""The examples, run as a user runs them: in a folder of their own, on a toy model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import raylign

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_grpo_from_python(tmp_path: Path, tiny_model_dir: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "grpo_from_python.py"), str(tiny_model_dir), "2"]
    env = {**os.environ, "WANDB_MODE": "disabled"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "close_to_wish" in done.stdout.partition("Reward functions")[2].partition("\n\n")[0]  # the plan
    assert "reward by step: 1: " in done.stdout and "best answer of the last step (" in done.stdout
    samples = raylign.load_samples(tmp_path / "runs" / "from-python")
    assert len(samples) == len({sample.key for sample in samples}) > 8
    for sample in samples:  # the reward is the file's function of the file's column, for every answer
        wished = 20 + int(re.findall(r"\d+", sample.prompt)[-1])
        assert sample.reward == pytest.approx(max(0.0, 1 - abs(len(sample.response) - wished) / wished), abs=1e-6)
    assert (tmp_path / "runs" / "from-python" / "report.html").is_file()


def test_a_mistake_is_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "grpo_from_python.py"), "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "policy.model=nowhere: there is no such folder" in done.stderr
    assert "Traceback" not in done.stderr
