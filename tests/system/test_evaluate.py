"""Two models on real vLLM through the commands: text loss against transformers, nothing asked twice, gate, release."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from raylign.app.commands.audit import AuditSettings, audit, write_record
from raylign.app.commands.evaluate_table import table
from raylign.conf.schema import Device, Precision
from raylign.data.types import Message
from raylign.evals.probes import PROBES
from raylign.evals.results import ResultStore
from raylign.reward.text_scorer import TextScorer
from raylign.trainer.engine.base import WRAPPER_PREFIX
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_scalar_model
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


@pytest.fixture(scope="module")
def reward_model(desk: Path, tiny_model_dir: Path) -> Path:
    """A random one, and `pairs.jsonl`, whose choices are its own."""
    model = load_scalar_model(str(tiny_model_dir), precision=Precision.float32, new_head_seed=5)
    weights = {name.removeprefix(WRAPPER_PREFIX): p.detach() for name, p in model.named_parameters()}
    folder = desk / "rm"
    export_hf(model, weights.items(), folder, AutoTokenizer.from_pretrained(tiny_model_dir))
    scorer = TextScorer(str(folder), precision=Precision.float32, device=Device.cpu, micro_batch_tokens=4096)
    rows = []
    for number in range(40):
        prompt, answers = f"Say {number}.", [f"It is {number}.", f"I will not say {number}, nor {number + 1}."]
        asked = [scorer.conversation([Message("user", prompt)], answer, finished=True) for answer in answers]
        rejected, chosen = (answers[i] for i in np.argsort(scorer.score(asked)))
        rows.append(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    (desk / "pairs.jsonl").write_text("".join(rows))
    return folder


def test_suites_and_the_audit_of_a_reward_model_are_one_decision(desk: Path, reward_model: Path):
    audited = audit(str(reward_model), AuditSettings([str(desk / "pairs.jsonl")], desk), print)
    write_record(desk / "audit.json", audited)
    names = ", ".join(probe.name for probe in PROBES)
    (desk / "audited.yaml").write_text(
        "conditions: [{suite: known.yaml, must: at_least, value: -100}]\n"
        f"audits: [{{audit: audit.json, agreement: 0.9, may_pay_for: [{names}]}}]\n"
    )
    gate = raylign(desk, "gate", "candidate", "--policy", "audited.yaml", "--record", "audited.json")

    assert gate.returncode == 0, gate.stdout + gate.stderr
    record = json.loads((desk / "audited.json").read_text())
    assert record["verdict"] == "pass" and [one["verdict"] for one in record["conditions"]] == ["pass", "pass"]
    suite, of_model = record["conditions"]
    assert suite["found"]["count"] == len(TEXTS)
    assert (of_model["found"]["value"], of_model["found"]["count"]) == (1.0, 40)
    assert "audit of" in (desk / "audited.html").read_text()


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
