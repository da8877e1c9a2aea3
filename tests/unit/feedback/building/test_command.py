"""`raylign feedback` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raylign.app.cli import app, run_command
from raylign.feedback.overrides import keys
from raylign.feedback.settings import BuildSettings


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(lambda: app(["feedback", *arguments]))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def log(make, tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    events = [make(n, "thumb", thumb=1 if n % 2 else -1) for n in range(40)]
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + "{broken\n")
    return path


def test_inspect_says_what_is_there_and_writes_nothing(log: Path, capsys):
    code, text, _ = call(capsys, "inspect", str(log))
    assert code == 0
    assert "native: 41 rows, 40 events, 1 quarantined" in text
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["thumb_up", "20"] in lines and ["user", "100.0%", "40"] in lines
    assert "log.jsonl:41" in text
    assert list(log.parent.iterdir()) == [log]


@pytest.mark.slow
def test_build_and_forget(log: Path, capsys):
    out = log.parent / "out"
    code, text, told = call(capsys, "build", str(log), "--out", str(out), "split.eval=0", "split.test=0")
    assert code == 0, told
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["kto", "40", "0", "0"] in lines and ["sft", "20", "0", "0"] in lines
    assert ["quarantined", "-1", "40"] in lines
    code, text, told = call(capsys, "forget", str(out), "--user", "u3")
    assert code == 0, told
    assert "1 events are forgotten." in text
    assert call(capsys, "forget", str(out), "--user", "nobody")[1].count("1 events are forgotten") == 1


def test_what_cannot_be_built_ends_with_2_and_sentences(log: Path, capsys):
    out = log.parent / "out"
    code, _, told = call(capsys, "build", str(log), "gone.jsonl", "--out", str(out), "kto.from_thumb=true")
    assert code == 2
    assert "gone.jsonl: there is no such file" in told and "did you mean kto.from_thumbs?" in told
    assert call(capsys, "build", str(log))[0] == 2
    assert call(capsys, "build", "--out", str(out))[0] == 2
    assert call(capsys, "forget", str(out), "--event", "e1")[0] == 2
    assert not out.exists()


def test_help_lists_every_setting(capsys):
    code, text, _ = call(capsys, "build", "--help")
    assert code == 0
    for key in keys(BuildSettings()):
        assert f"  {key.name} " in text and key.doc in text
    assert max(len(line) for line in text.splitlines()) <= 130


@pytest.mark.slow
def test_forgetting_after_the_log_has_moved_or_grown(log: Path, make, capsys):
    out, moved = log.parent / "out", log.parent / "archive" / "renamed.jsonl"
    assert call(capsys, "build", str(log), "--out", str(out), "split.eval=0", "split.test=0")[0] == 0
    moved.parent.mkdir()
    log.rename(moved)
    code, _, told = call(capsys, "forget", str(out), "--user", "u3")
    assert code == 2 and "say where it is now with --log" in told
    code, text, told = call(capsys, "forget", str(out), "--user", "u3", "--log", str(moved))
    assert code == 0, told
    assert "1 events are forgotten." in text and "The logs are not what" not in text
    more = "".join(json.dumps(make(n, "thumb", thumb=1)) + "\n" for n in range(100, 105))
    moved.write_text(moved.read_text() + more)
    code, text, told = call(capsys, "forget", str(out), "--user", "u5")  # where it is now is remembered
    assert code == 0, told
    assert f"renamed.jsonl (+{len(more.encode())} bytes). Judgements 41 to 46; sft 19 to 23 rows" in text
    assert "kto 39 to 43 rows" in text
