"""Models that a run cannot train or serve right are refused before Ray, by their shape and by the rows' own lengths."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from raylign.app.cli import app, run_command
from raylign.trainer.models import loading
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SHAPE = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
WIDE = {"max_position_embeddings": 256}
DYNAMIC = {**WIDE, "rope_parameters": {**ROPE, "rope_type": "dynamic"}}
LONG = {
    **WIDE,
    "original_max_position_embeddings": 64,  # Phi 3's own field, which wins
    "rope_parameters": {**ROPE, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
}


def make(folder: Path, like: Path, kind: str, **fields: Any) -> Path:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **fields})).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def rows(path: Path, words: int, answer: bool) -> Path:
    row = {"prompt": "ok " * words} | ({"completion": "yes"} if answer else {})
    path.write_text(json.dumps({"prompt": "Why?", **({"completion": "So."} if answer else {})}) + "\n")
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return path


def call(capsys: pytest.CaptureFixture[str], command: str, algorithm: str, *given: str) -> tuple[int, str, str]:
    code = run_command(lambda: app([command, f"+experiment={algorithm}_tiny_cpu", "data.eval=''", *given]))
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "fields", "words"), [
    ("llama", DYNAMIC, "rotary scaling of type dynamic beyond the original length, so past 64 tokens"),
    ("phi3", LONG, "rotary scaling of type longrope beyond the original length, so past 64 tokens"),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, "learned positions for 64 tokens"),
])  # fmt: skip
def test_rows_longer_than_a_models_numbers_are_its_own_are_refused_and_shorter_ones_are_not(
    kind: str, fields: dict[str, Any], words: str, tiny_model_dir: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    model = make(tmp_path / "model", tiny_model_dir, kind, **fields)
    given = [f"policy.model={model}", f"run_root={tmp_path}", "name=r", "tracking.wandb=disabled"]
    long, short = rows(tmp_path / "long.jsonl", 90, answer=True), rows(tmp_path / "short.jsonl", 5, answer=True)
    code, _, told = call(capsys, "train", "sft", *given, f"data.train={long}", "data.max_length=400")
    assert code == 2 and words in told and "set data.max_length=64" in told and str(model) in told
    assert call(capsys, "plan", "sft", *given, f"data.train={short}", "data.max_length=200")[0] == 0


def test_answers_that_may_grow_longer_than_a_models_numbers_are_its_own_are_refused(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = make(tmp_path / "model", tiny_model_dir, "llama", **DYNAMIC)
    asked = rows(tmp_path / "asked.jsonl", 5, answer=False)
    given = [f"policy.model={model}", f"run_root={tmp_path}", f"data.train={asked}", "rollout.max_model_len=200"]
    given += ["data.max_prompt_tokens=60", "reward.rules=[{rule: finished}]", "reward.model=''"]
    code, _, told = call(capsys, "plan", "rloo", *given, "rollout.max_new_tokens=60")
    assert code == 2 and "past 64 tokens" in told and "lower data.max_prompt_tokens, rollout.max_new_tokens" in told
    assert call(capsys, "plan", "rloo", *given, "rollout.max_new_tokens=16")[0] == 0


def test_a_mixture_of_experts_is_refused_online_and_trained_offline(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = make(tmp_path / "model", tiny_model_dir, "mixtral", num_local_experts=4, max_position_embeddings=512)
    given = [f"policy.model={model}", f"run_root={tmp_path}", "name=r", "tracking.wandb=disabled"]
    asked, said = rows(tmp_path / "a.jsonl", 5, answer=False), rows(tmp_path / "b.jsonl", 5, answer=True)
    code, _, told = call(
        capsys, "train", "rloo", *given, f"data.train={asked}", "reward.model=''", "reward.rules=[{rule: finished}]"
    )
    assert code == 2 and f"policy.model={model} is a mixture of experts" in told and "offline" in told
    assert call(capsys, "plan", "sft", *given, f"data.train={said}")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ranks", "fused", "remedy"),
    [
        ("phi3", 2, "gate_up_proj, qkv_proj", "set rollout.tensor_parallel_size=1"),
        ("gpt_neox", 1, "query_key_value", "train it offline"),
        ("gpt2", 1, "c_attn", "train it offline"),
        ("gpt2", 2, "c_attn", "train it offline"),
        ("phi3", 1, "", ""),
    ],
)
def test_fused_projections_that_an_engine_cannot_be_held_to_are_refused_online(
    kind: str,
    ranks: int,
    fused: str,
    remedy: str,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """One rank serves what a folder stores fused row by row: tests/system/test_served_matrix.py."""
    model = make(tmp_path / "model", tiny_model_dir, kind, max_position_embeddings=512)
    asked = rows(tmp_path / "a.jsonl", 5, answer=False)
    given = [f"policy.model={model}", f"run_root={tmp_path}", f"data.train={asked}", "reward.model=''", "name=r"]
    given += [f"rollout.tensor_parallel_size={ranks}", "reward.rules=[{rule: finished}]", "rollout.max_new_tokens=16"]
    code, told, wrong = call(capsys, "plan", "rloo", *given)
    if fused:
        assert code == 2 and f"stores {fused} fused" in wrong and remedy in wrong
    else:
        assert code == 0 and "fused, whose parts" not in told + wrong


def test_tokens_without_an_embedding_are_refused(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = make(tmp_path / "model", tiny_model_dir, "llama", vocab_size=256, max_position_embeddings=512)
    said = rows(tmp_path / "b.jsonl", 5, answer=True)
    code, _, told = call(capsys, "plan", "sft", f"policy.model={model}", f"data.train={said}", f"run_root={tmp_path}")
    assert code == 2 and f"policy.model={model} has 256 token ids and the rows have id" in told


def test_a_plan_says_when_an_architecture_could_not_be_tried(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def no_copy(config: object) -> object:
        raise ValueError("too odd to be made small")

    said = rows(tmp_path / "b.jsonl", 5, answer=True)
    given = ["plan", "sft", f"policy.model={tiny_model_dir}", f"data.train={said}", f"run_root={tmp_path}"]
    assert "no small copy" not in call(capsys, *given)[1]
    monkeypatch.setattr(loading, "small_copy", no_copy)
    code, told, _ = call(capsys, *given)
    assert code == 0 and f"policy.model={tiny_model_dir}: no small copy of its architecture can be built" in told
