"""`raylign chat` and `serve`: which model is meant, and how a conversation goes on."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from raylign.app.commands.chat import Answering, converse
from raylign.app.commands.serve import causal_export, serve_command
from raylign.conf.errors import UserError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Echo(Answering):
    """Answers with how many messages it was given."""

    def answer(self, messages, out):
        out.write(f"{len(messages)}\n")
        return "answer"


ECHO = Echo(None, None, 8, 0.0)


@pytest.mark.parametrize(
    ("question", "given", "said"),
    [
        ("one?", io.StringIO("not read\n"), "1\n"),
        (None, io.StringIO("one?\n\ntwo?\n"), "1\n1\n"),
        (None, Terminal("one?\ntwo?\n"), "> 1\n> 3\n> "),
    ],
)
def test_a_question_piped_lines_and_a_conversation(question: str | None, given: io.StringIO, said: str) -> None:
    out = io.StringIO()
    converse(ECHO, question, given, out)
    assert out.getvalue() == said


def export(folder: Path, architecture: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        f'{{"architectures": ["{architecture}"], "model_type": "llama", "id2label": {{"0": "r"}}}}'
    )
    (folder / "model.safetensors").touch()
    return folder


def test_the_best_export_of_a_run_is_meant_else_the_last_by_its_number(tmp_path: Path) -> None:
    best = export(tmp_path / "mine/export/step-9", "LlamaForCausalLM")
    last = export(tmp_path / "mine/export/step-10", "LlamaForCausalLM")
    (tmp_path / "mine/resolved.yaml").touch()
    assert causal_export("mine", tmp_path) == last
    assert causal_export(str(last), Path("nowhere")) == last
    (tmp_path / "mine/export/BEST").write_text("step-9\n")
    assert causal_export("mine", tmp_path) == best


def test_a_reward_model_a_run_without_export_and_nothing_are_refused(tmp_path: Path) -> None:
    export(tmp_path / "rm/export/step-1", "LlamaForSequenceClassification")
    (tmp_path / "rm/resolved.yaml").touch()
    (tmp_path / "young").mkdir()
    (tmp_path / "young/resolved.yaml").touch()
    for name, why in (
        ("rm", "is a reward model"),
        ("young", "is a run without an export"),
        ("absent", "neither a run nor"),
    ):
        with pytest.raises(UserError, match=why):
            causal_export(name, tmp_path)


def test_the_server_listens_on_loopback_unless_asked_and_gets_further_options() -> None:
    command = serve_command(Path("m"), "127.0.0.1", 8000, ["--max-model-len", "64"])
    assert command[1:] == [
        *("-m", "vllm.entrypoints.openai.api_server", "--model", "m", "--host", "127.0.0.1", "--port", "8000"),
        *("--max-model-len", "64"),
    ]
