"""Callbacks of a user's own: called with a record they cannot change, refused or named when they cannot be used."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from raylign.app.launch.callbacks import Callback, CallbackSink, StepRecord, callback_files, load_callbacks
from raylign.conf.errors import ConfigError, RunFailed


class Lines:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, Mapping[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.lines.append((step, metrics))


def sink(
    tmp_path: Path, source: str, name: str = "f", timeout_s: float = 30.0
) -> tuple[CallbackSink, Lines, list[str]]:
    file = tmp_path / "mine.py"
    file.write_text(source)
    lines, told = Lines(), []
    loaded = load_callbacks([f"{file}:{name}"], 5)
    return CallbackSink(lines, loaded, tmp_path, told.append, timeout_s=timeout_s), lines, told


def test_called_after_the_step_is_written_and_asks_to_stop_once(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("LIMIT = 0.5\n")
    steps, lines, told = sink(
        tmp_path,
        "from helper_of_mine import LIMIT\nseen = []\n"
        "def f(record):\n    seen.append((record.step, record.run))\n"
        "    return record.metrics['reward/mean'] > LIMIT\n",
    )
    steps.log(1, {"reward/mean": 0.25})
    assert not steps.stopped_by and not told
    steps.log(2, {"reward/mean": 0.75})
    steps.log(3, {"reward/mean": 0.75})
    assert told == [f"callbacks: {tmp_path / 'mine.py'}:f asked to stop after step 2"] and steps.stopped_by
    (callback,) = load_callbacks([f"{tmp_path / 'mine.py'}:f"], 5)
    assert callback.call.__globals__["seen"] == [(n, tmp_path) for n in (1, 2, 3)]  # type: ignore[attr-defined]
    assert [step for step, _ in lines.lines] == [1, 2, 3]


def test_a_record_cannot_be_changed(tmp_path: Path) -> None:
    def meddle(record: StepRecord) -> None:
        with pytest.raises(FrozenInstanceError):
            record.step = 7  # type: ignore[misc]
        with pytest.raises(TypeError):
            record.metrics["policy/kl"] = 0.0  # type: ignore[index]

    lines = Lines()
    CallbackSink(lines, [Callback("meddle", meddle)], tmp_path, print, timeout_s=30).log(1, {"policy/kl": 2.0})
    assert lines.lines == [(1, {"policy/kl": 2.0})]


def test_one_that_raises_ends_the_run_by_name_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "a-very-secret-value")
    steps, lines, _ = sink(tmp_path, "import os\ndef f(r): raise ValueError('no ' + os.environ['MY_API_KEY'])\n")
    with pytest.raises(RunFailed, match=r"callbacks: .*mine\.py:f failed after step 4: ValueError: no \*\*\*; fix it"):
        steps.log(4, {})
    assert lines.lines == [(4, {})]  # the step itself is kept
    both = "import sys\ndef h(r): sys.exit(0)\ndef g(r): return 'stop'\n"
    leaving, _, _ = sink(tmp_path / "..", both, "h")
    with pytest.raises(RunFailed, match="failed after step 4: SystemExit: 0; fix it"):
        leaving.log(4, {})
    answering, _, _ = sink(tmp_path / "..", both, "g")
    with pytest.raises(RunFailed, match="returned a str after step 4; return True to save and stop"):
        answering.log(4, {})


def test_one_that_hangs_ends_the_run_by_name_and_a_slow_one_does_not(tmp_path: Path) -> None:
    hanging, lines, _ = sink(tmp_path, "import time\ndef f(r): time.sleep(60)\n", timeout_s=0.2)
    began = time.monotonic()
    with pytest.raises(RunFailed, match=r"mine\.py:f was not done 0\.2 s after step 7; .*callback_timeout_s"):
        hanging.log(7, {})
    assert time.monotonic() - began < 10 and lines.lines == [(7, {})]  # the step itself is kept
    (tmp_path / "slow").mkdir()
    slow, _, _ = sink(tmp_path / "slow", "import time\ndef f(r): time.sleep(0.3)\n")
    slow.log(7, {})


def test_a_file_that_hangs_when_imported_is_refused(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(60)\ndef f(r): ...\n")
    with pytest.raises(ConfigError, match=r"endless\.py was not imported within 0\.2 s; do less at import"):
        load_callbacks([f"{tmp_path}/endless.py:f"], 0.2)


def test_the_manifest_gets_the_file_and_what_it_can_import(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import beside\ndef f(r): ...\n")
    (tmp_path / "beside.py").write_text("")
    assert callback_files([f"{tmp_path}/mine.py:f", "os.path:join"]) == {
        "callbacks.mine.py": tmp_path / "mine.py",
        "callbacks.beside.py": tmp_path / "beside.py",
    }


@pytest.mark.parametrize(
    ("source", "path", "sentence"),
    [
        ("", "mine.py", "callbacks: mine.py: names no function; write FILE.py:NAME"),
        ("", "gone.py:f", "gone.py: there is no such file"),
        (
            "import nothing_there",
            "mine.py:f",
            "cannot be imported: ModuleNotFoundError: No module",
        ),
        ("def f(:", "mine.py:f", "cannot be imported: SyntaxError"),
        ("import sys; sys.exit(3)", "mine.py:f", "mine.py ends the process when imported"),
        ("def other(record): ...", "mine.py:f", "has no function f; it has other"),
        ("f = 3", "mine.py:f", "is a int; a callback is a function"),
        ("async def f(record): ...", "mine.py:f", "is async, and callbacks are plain functions"),
        ("def f(): ...", "mine.py:f", "cannot be called with one argument"),
        ("def f(a, b): ...", "mine.py:f", "cannot be called with one argument"),
        ("", "no_such_module_anywhere:f", "no_such_module_anywhere cannot be imported"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    source: str, path: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ConfigError) as told:
        load_callbacks([path, path], 30)
    assert len(told.value.problems) == 2 and all(p.startswith("callbacks: ") for p in told.value.problems)
    assert sentence in told.value.problems[0] and told.value.problems[0].endswith(".")


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"def f(record): return {folder!r}\n")
    loaded = load_callbacks([f"{tmp_path}/a/same.py:f", f"{tmp_path}/b/same.py:f"], 30)
    assert [callback.call(StepRecord(tmp_path, 1, {})) for callback in loaded] == ["a", "b"]
