"""What is wrong with rows and templates is said by `train` and `plan` before Ray starts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from raylign.app.cli import app, run_command
from raylign.data.chat_template import FAMILIES

TURN = [{"role": "user", "content": "Why?"}]
REPLY = [{"role": "assistant", "content": "So."}]
ROWS: dict[str, dict[str, object]] = {
    "sft": {"messages": [*TURN, *REPLY]},
    "dpo": {"prompt": TURN, "chosen": REPLY, "rejected": [{"role": "assistant", "content": "No."}]},
    "rm": {"prompt": TURN, "chosen": REPLY, "rejected": [{"role": "assistant", "content": "No."}]},
    "kto": {"prompt": TURN, "completion": REPLY, "label": True},
    "grpo": {"prompt": TURN},
}


@pytest.fixture(scope="module")
def bare(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bare"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns("chat_template.jinja"))
    return folder


def call(capsys: pytest.CaptureFixture[str], command: str, algorithm: str, *given: str) -> tuple[int, str, str]:
    started = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    code = run_command(lambda: app([command, f"+experiment={algorithm}_tiny_cpu", *given]))
    assert started or "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ROWS)
def test_conversations_for_a_model_without_a_template_are_refused_with_the_way_out(
    algorithm: str, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps(ROWS[algorithm]) + "\n") * 4)
    given = [f"policy.model={bare}", f"data.train={rows}", "data.eval=''", f"run_root={tmp_path}", "name=r"]
    given += ["reward.model=''", "reward.rules=[{rule: finished}]"] if algorithm == "grpo" else []
    code, _, told = call(capsys, "train", algorithm, *given, "tracking.wandb=disabled")
    assert code == 2 and "Traceback" not in told
    assert "4 of 4 rows cannot be used" in told and "set data.chat_template to a file or to one of chatml" in told
    if algorithm != "kto":  # whose rows need both labels
        assert call(capsys, "plan", algorithm, *given, "data.chat_template=chatml")[0] == 0


def test_plain_prompts_are_said_to_go_in_as_plain_text_and_a_template_by_name_is_used(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Why?", "completion": "So."}) + "\n")
    given = [f"policy.model={bare}", f"data.train={rows}", "data.eval=''", f"run_root={tmp_path}", "name=r"]
    code, told, _ = call(capsys, "plan", "sft", *given)
    assert code == 0 and told.count("prompts go in as plain text") == 1
    code, told, _ = call(capsys, "plan", "sft", *given, "data.chat_template=zephyr")
    assert code == 0 and "plain text" not in told and "<|user|>" in told


def test_a_template_and_a_system_prompt_that_cannot_be_used_are_refused(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Why?", "completion": "So."}) + "\n")
    given = [f"policy.model={bare}", f"data.train={rows}", "data.eval=''", f"run_root={tmp_path}", "name=r"]
    for command in ("train", "plan"):
        assert "no token <|start_header_id|>" in call(capsys, command, "sft", *given, "data.chat_template=llama3")[2]
        assert "known: " + ", ".join(FAMILIES) in call(capsys, command, "sft", *given, "data.chat_template=x.jinja")[2]
        assert "data.system_prompt would be lost" in call(capsys, command, "sft", *given, "data.system_prompt=Hi")[2]
