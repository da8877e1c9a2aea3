"""examples/three_ways.sh on the sample model: a log of choices, three models, an evaluation, an audit and a gate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from raylign.app.demo import demo_questions
from raylign.data.sample_model import prepare_sample_model
from raylign.evals.gate import Verdict
from raylign.evals.results import model_digest
from raylign.records.metrics_log import read_history
from raylign.records.nights import Nights
from raylign.records.run_folder import RunPaths
from raylign.records.samples import read_samples

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(3600)]

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "three_ways.sh"
PATIENCE_S = 3500
BEGINS = "In one line:"
"""What every chosen answer begins with, and no other."""


def choice(number: int, question: str) -> str:
    """People like the short one that begins with the words, on either side."""
    short = f"{BEGINS} {question.rstrip('?.').lower()} is a matter of a moment."
    long = (
        f"That is a good question. {question} There is much to be said about it, and nobody can say it in a few words."
    )
    first, second, choice = (short, long, "a") if number % 2 else (long, short, "b")
    row = {"event_id": f"c{number}", "kind": "side_by_side", "prompt": [{"role": "user", "content": question}],
           "response_a": first, "response_b": second, "choice": choice, "user_id": f"u{number % 30}"}  # fmt: skip
    return json.dumps(row) + "\n"


def test_three_ways_to_learn_from_one_log(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(choice(n, question) for n, question in enumerate(demo_questions())))
    model, desk = prepare_sample_model(), tmp_path / "desk"
    desk.mkdir()
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WANDB_MODE": "disabled",
    }
    command = ["bash", str(SCRIPT), str(log), str(model)]
    done = subprocess.run(command, cwd=desk, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode in {one.value for one in Verdict}, done.stdout[-3000:] + done.stderr[-3000:]

    (night,) = Nights(desk / "loop").all()
    gate = json.loads(Path(night.made("gate")).read_text())
    assert gate["verdict"] == Verdict(done.returncode).words
    assert [one["suite"] for one in gate["conditions"]] == ["facts", "text", "audit of reward-model"]
    assert gate["digests"]["current"] == model_digest(model)
    made = [night.model(name) for name in ("sft", "dpo", "reward-model", "ppo")]
    assert len({model_digest(Path(folder)) for folder in [*made, str(model)]}) == 5
    page = Path(night.made("compare"))
    found = json.loads(page.with_suffix(".json").read_text())
    assert [one["name"] for one in found["models"]] == ["current", "sft", "dpo", "ppo"] and len(found["pairs"]) == 6
    assert all(name in page.read_text() for name in ("sft", "dpo", "ppo"))
    assert all((page.parent / f"{name}.html").is_file() for name in ("eval", "gate", "audit-reward-model"))

    asked = {one["prompt"] for one in found["asked"]}
    trained = (desk / "loop" / "night-0001" / "build" / "pairs" / "train.jsonl").read_text()
    assert len(asked) >= 10 and not any(json.dumps(question)[1:-1] in trained for question in asked)
    (samples,) = sorted((desk / "loop" / "runs" / "night-0001-ppo" / "samples").glob("step-*.parquet"))[-1:]
    assert not asked & {sample.prompt for sample in read_samples(samples)}

    audit = json.loads((desk / "loop" / "night-0001" / "audit-reward-model.json").read_text())
    assert audit["accuracy"][0]["accuracy"]["value"] >= 0.9  # the choices are easy to tell apart
    words = {one["name"]: one["words"] for one in found["models"]}
    assert words["sft"] < words["current"] / 2  # the chosen answers are short
    rows_of = {
        name: read_history(RunPaths(desk / "loop" / "runs" / f"night-0001-{name}").metrics).rows
        for name in ("sft", "dpo")
    }
    assert all(rows[-1].values["train/loss"] < rows[1].values["train/loss"] / 2 for rows in rows_of.values())
