"""Two models on real vLLM through the commands: text loss against transformers, nothing asked twice, gate, release."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from raylign.app.commands.evaluate_table import table
from raylign.evals.results import ResultStore
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ("A river runs to the sea.", "The train is late again, said the man at the gate.", "x = [1, 2, 3]")


def raylign(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raylign.app.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder with two models, two suites and a policy."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(tiny_model_dir, folder / "current")
    shutil.copytree(tiny_model_dir, folder / "candidate")
    weights = folder / "candidate" / "model.safetensors"
    changed = {name: tensor * (1.5 if "mlp" in name else 1.0) for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (folder / "known.yaml").write_text("kind: text_loss\nprompts: texts.jsonl\n")
    (folder / "asks.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(6)))
    (folder / "short.yaml").write_text(
        "prompts: asks.jsonl\nreward: {rules: [{rule: 'length_target:4'}]}\nlow: 0\nhigh: 1\nmax_new_tokens: 8\n"
    )
    (folder / "gate.yaml").write_text(
        "conditions:\n"
        "  - {suite: known.yaml, must: at_least, value: -100}\n"
        "  - {suite: short.yaml, must: not_worse, by: 1.5}\n"
    )
    return folder


def bits_a_byte(model_dir: Path, text: str) -> float:
    """By transformers, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = torch.tensor([[*start, *tokenizer.encode(text, add_special_tokens=False)]])
    with torch.no_grad():
        logprobs = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
    return float(logprobs.sum()) / math.log(2) / len(text.encode())


def test_models_are_compared_gated_and_released(desk: Path):
    asked = ["eval", "candidate", "--suite", "known.yaml", "--suite", "short.yaml", "--against", "current"]
    first = raylign(desk, *asked)
    assert first.returncode == 0, first.stderr
    assert "candidate: known, 3 rows" in first.stderr and "current: short, 6 rows" in first.stderr

    files = {path.stem for path in (desk / "eval-results").glob("known-*.json")}
    found = [result for key in files if (result := ResultStore(desk / "eval-results").find(key))]
    assert {result.model for result in found} == {"candidate", "current"}
    for result in found:
        expected = [bits_a_byte(desk / result.model, text) for text in TEXTS]
        assert [row.value for row in result.rows] == pytest.approx(expected, abs=1e-4)

    second = raylign(desk, *asked)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert "rows" not in second.stderr  # nothing was asked again

    assert "points to" in raylign(desk, "promote", "production", "current", "--first").stdout
    gate = raylign(desk, "gate", "candidate", "--against", "production", "--policy", "gate.yaml")
    assert gate.returncode == 0, gate.stdout + gate.stderr
    assert raylign(desk, "promote", "production", "candidate").returncode == 0
    assert raylign(desk, "promote", "production", "--rollback").returncode == 0


def test_models_are_shown_side_by_side(desk: Path):
    asked = ["compare", "candidate", "current", "--prompts", "asks.jsonl", "--rule", "length_target:4"]
    first = raylign(desk, *asked)

    assert first.returncode == 0, first.stderr
    found = json.loads((desk / "compare.json").read_text())
    assert [model["name"] for model in found["models"]] == ["candidate", "current"]
    assert len(found["asked"]) == 6 and all(len(row["answers"]) == 1 for one in found["asked"] for row in one["rows"])
    assert "candidate over current" in first.stdout and "Say 3." in (desk / "compare.html").read_text()
    assert "rows" not in raylign(desk, *asked).stderr  # nothing was asked again


def test_what_cannot_be_asked_is_one_sentence(desk: Path):
    (desk / "long.yaml").write_text((desk / "short.yaml").read_text().replace("8", "100000"))

    refused = raylign(desk, "eval", "candidate", "--suite", "long.yaml")

    assert refused.returncode == 2
    assert "shorten it, or leave the suite out" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert table([], "m", None, desk)
