"""One process for all jobs of a model: started once, and what ends it early is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from raylign.app.commands import answer_process
from raylign.app.commands.answer_job import DONE, NOTE, RESULT, AnswerJob
from raylign.app.commands.answer_process import AnswerProcess
from raylign.conf.errors import RunFailed, UserError

ANSWERS = f"""
import json, os, sys, time
for line in sys.stdin:
    name = json.loads(line)["name"]
    print("something the engine says")
    print("{NOTE}" + name)
    if name == "refused":
        print("suite asks: it has no rows.", file=sys.stderr)
        sys.exit(2)
    if name == "breaks":
        raise ValueError("a worker died")
    if name == "hangs":
        time.sleep(60)
    print("{RESULT}" + name + "-" + str(os.getpid()))
    print("{DONE}", flush=True)
"""


def job(name: str) -> AnswerJob:
    return AnswerJob("m", name, (), "r", "float32", 1, "cpu", again=False, keeps_engine=True)


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AnswerProcess:
    monkeypatch.setattr(answer_process, "COMMAND", (sys.executable, "-c", ANSWERS))
    return AnswerProcess(tmp_path / "logs" / "answer.log", {})


def test_every_job_is_done_by_the_same_process(process: AnswerProcess) -> None:
    told: list[str] = []
    with process:
        keys = [process.keys(job(name), 30, told.append) for name in ("one", "two")]
    (first,), (second,) = keys
    assert first.startswith("one-") and second == first.replace("one", "two") and told == ["one", "two"]


def test_a_process_without_a_job_is_none(process: AnswerProcess, tmp_path: Path) -> None:
    with process:
        pass
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("refused", UserError, "suite asks: it has no rows"),
        ("breaks", RunFailed, "ValueError: a worker died; see .*answer.log"),
        ("hangs", RunFailed, "not answered within 1.5 s"),
    ],
)
def test_what_ends_it_early_is_told(process: AnswerProcess, name: str, error: type[Exception], said: str) -> None:
    with process:
        process.keys(job("one"), 30, lambda note: None)
        with pytest.raises(error, match=said):
            process.keys(job(name), 1.5, lambda note: None)
