"""Reward functions of a user's own: three signatures, and every way in which one can fail is named, never 0."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from raylign.app.launch.functions import refuse_missing_columns
from raylign.conf.errors import ConfigError
from raylign.conf.schema import RewardConfig, RewardFunctionConfig
from raylign.data.types import Prompt
from raylign.reward.function_call import Caller, recognised
from raylign.reward.function_messages import Done, FunctionError, Style
from raylign.reward.function_process import FunctionProcess
from raylign.reward.functions import FunctionSource, installed_file, read_source, sent_files
from raylign.reward.samples import NotScored, Sample, Score

SAMPLES = [
    Sample(
        "What is 2+2?",
        text,
        (("user", "What is 2+2?"),),
        (5, 6),
        "sums",
        "4",
        {"level": i},
        templated_prompt="<user>What is 2+2?<assistant>",
        templated_query=f"<user>What is 2+2?<assistant>{text}<end>",
    )
    for i, text in enumerate(["4", "five"])
]


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return f"{folder / name}:score"


def process(source: FunctionSource, *, timeout_s: float = 60.0, batch_timeout_s: float = 60.0) -> FunctionProcess:
    return FunctionProcess(source.code, timeout_s=timeout_s, start_timeout_s=60.0, batch_timeout_s=batch_timeout_s)


def called(body: str, style: Style, samples: list[Sample] = SAMPLES, *, head: str = "") -> list[Score]:
    """What a function of this body says, called in this process."""
    names: dict[str, Any] = {}
    heads = {
        Style.trl: "def score(prompts, completions, **rest):",
        Style.verl: "def score(data_source, solution_str, ground_truth, extra_info=None):",
        Style.openrlhf: "def score(queries, prompts, labels):",
    }
    exec(f"{head or heads[style]}\n    {body}", names)
    found: dict[int, Score] = {}

    def note(message: object) -> None:
        if isinstance(message, Done):
            found.update(zip(message.rows, message.scores, strict=True))

    Caller(names["score"], style).score(samples, note)
    return [found[row] for row in range(len(samples))]


FORMS = {
    Style.trl: "def score(prompts, completions, ground_truth, level, **rest):\n"
    "    return [float(c[0]['content'] == g) + l for c, g, l in zip(completions, ground_truth, level)]",
    Style.verl: "def score(data_source, solution_str, ground_truth, extra_info=None):\n"
    "    return {'score': float(solution_str == ground_truth) + extra_info['level'], 'acc': 1}",
    Style.openrlhf: "def score(queries, prompts, labels, **rest):\n"
    "    return {'rewards': [float(q[len(p):] == l + '<end>') + i\n"
    "                        for i, (q, p, l) in enumerate(zip(queries, prompts, labels))]}",
}


@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("is_async", [False, True])
def test_the_signatures_of_three_trainers_are_recognised_and_called(
    style: Style, is_async: bool, tmp_path: Path
) -> None:
    names: dict[str, Callable[..., Any]] = {}
    exec(("async " if is_async else "") + FORMS[style], names)
    assert recognised(names["score"], "mine.py:score", None) is style
    found: dict[int, Score] = {}

    def note(message: object) -> None:
        if isinstance(message, Done):
            found.update(zip(message.rows, message.scores, strict=True))

    Caller(names["score"], style).score(SAMPLES, note)
    assert found == {0: 1.0, 1: 1.0}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise KeyError('gone')", [NotScored("it raised KeyError: 'gone'")] * 2),
        ("return [None, float('nan')]", [None, NotScored("it gave nan")]),
        ("return [1.0]", [NotScored("it gave 1 values for 2 answers")] * 2),
        ("return ['good', 2]", [NotScored("it gave str, not a number"), 2.0]),
        ("return ['7', b'7']", [NotScored("it gave str, not a number"), NotScored("it gave bytes, not a number")]),
        ("return 3", [NotScored("it gave int, not a list of 2 numbers")] * 2),
        ("rewards = [1.0]", [NotScored("it gave None, not a list of 2 numbers")] * 2),
        ("return 'ab'", [NotScored("it gave str, not a list of 2 numbers")] * 2),
    ],
)
def test_what_is_no_score_is_a_named_failure(body: str, expected: list[Score]) -> None:
    assert called(body, Style.trl) == expected


def test_a_column_that_no_row_of_a_batch_has_is_none_and_one_that_no_row_has_is_refused(tmp_path: Path) -> None:
    """As in TRL, where a column is there for every row; a misspelt one would fail every call."""
    text = "def score(prompts, completions, level, more=3): return [float(l is None) for l in level]"
    head, _, body = text.partition(": ")
    [first, _] = called(body, Style.trl, [replace(sample, columns={}) for sample in SAMPLES], head=f"{head}:")
    assert first == 1.0
    config = RewardConfig(functions=[RewardFunctionConfig(path=written(tmp_path, text))])
    prompts = [Prompt("p", (), (1,), columns=columns) for columns in ('{"levle": 2}', "")]
    with pytest.raises(ConfigError, match=r"takes 'level', and data.train has no such column \(it has levle beside"):
        refuse_missing_columns(config, prompts)
    refuse_missing_columns(config, [*prompts, Prompt("q", (), (1,), columns='{"level": 2}')])


def test_rows_in_verls_own_form_are_read_as_verl_reads_them() -> None:
    columns = {"reward_model": {"style": "rule", "ground_truth": "4"}, "extra_info": {"index": 7}, "level": 1}
    row = replace(SAMPLES[0], ground_truth=None, columns=columns)
    body = "return float(ground_truth == '4') + extra_info['index'] + extra_info['level']"
    assert called(body, Style.verl, [row]) == [9.0]


def test_none_is_not_applicable_only_where_trl_says_so() -> None:
    [first, _] = called("return None if solution_str == '4' else 2.0", Style.verl)
    assert isinstance(first, NotScored) and "gave None" in first.reason


@pytest.mark.parametrize(
    ("head", "wanted", "said"),
    [
        ("def score(a, b)", None, r"takes \(a, b\), which is not a known signature of a reward function"),
        ("def score(prompts, answers)", Style.trl, "style trl gives completions by name, which it does not take"),
        ("def score(prompts, completions, trainer_state)", None, "has no trainer_state here"),
        ("def score(queries, prompts)", Style.openrlhf, r"is called as f\(queries, prompts, labels\)"),
        ("def score(queries, prompts, labels, more)", None, "gives no more; give it a default"),
        ("def score(solution_str, ground_truth)", Style.verl, "gives data_source by name, which it does not take"),
        ("def score(data_source, solution_str, ground_truth, level)", None, "gives no level; .* extra_info"),
        ("def score(prompts, completions, /)", Style.trl, "a parameter before /"),
    ],
)
def test_a_signature_that_cannot_be_called_is_refused_also_when_its_style_is_named(
    head: str, wanted: Style | None, said: str
) -> None:
    names: dict[str, Callable[..., Any]] = {}
    exec(f"{head}: pass", names)
    with pytest.raises(FunctionError, match=said):
        recognised(names["score"], "mine.py:score", wanted)


@pytest.mark.slow
def test_a_function_that_hangs_or_dies_fails_its_samples_and_serves_again(tmp_path: Path) -> None:
    text = (
        "import os, time\n"
        "def score(prompts, completions, **rest):\n"
        "    word = completions[0][0]['content']\n"
        "    if word == '4': os._exit(9)\n"
        "    if word == 'wait': time.sleep(60)\n"
        "    return [7.0] * len(prompts)\n"
    )
    mine = process(read_source(written(tmp_path, text)), timeout_s=0.5)
    try:
        assert mine.score(SAMPLES) == [NotScored("its process ended with code 9")] * 2
        assert mine.score([replace(SAMPLES[0], completion="wait")]) == [NotScored("it did not answer within 0.5 s")]
        assert mine.score(SAMPLES[1:]) == [7.0]
    finally:
        mine.stop()


@pytest.mark.parametrize("is_async", [False, True])
def test_one_hanging_or_dying_call_of_verls_style_fails_its_own_row_only(is_async: bool, tmp_path: Path) -> None:
    text = (
        "import os, time, asyncio\n"
        f"{'async ' if is_async else ''}def score(data_source, solution_str, ground_truth, extra_info=None):\n"
        f"    if solution_str == 'wait': {'await asyncio.sleep(60)' if is_async else 'time.sleep(60)'}\n"
        "    return float(len(solution_str))\n"
    )
    rows = [replace(SAMPLES[0], completion=text) for text in ("a", "wait", "abc")]
    mine = process(read_source(written(tmp_path, text)), timeout_s=0.5)
    try:
        assert mine.score(rows) == [1.0, NotScored("it did not answer within 0.5 s"), 3.0]
    finally:
        mine.stop()


def test_rows_for_which_no_time_is_left_are_failures_that_say_so(tmp_path: Path) -> None:
    text = "import time\ndef score(data_source, solution_str, ground_truth, extra_info=None): time.sleep(60)\n"
    mine = process(read_source(written(tmp_path, text)), timeout_s=0.5, batch_timeout_s=0.5)
    try:
        first, second = mine.score(SAMPLES)
        assert isinstance(first, NotScored) and first.reason.startswith("it did not answer within 0.")
        assert second == NotScored("it was not called: earlier calls took the 0.5 s there are")
    finally:
        mine.stop()


def test_what_lies_beside_the_file_goes_along(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("VALUE = 3.0\n")
    path = written(tmp_path, "from helper_of_mine import VALUE\ndef score(prompts, completions): return [VALUE] * 2")
    source = read_source(path)
    assert [file.name for file in sent_files(path)] == ["helper_of_mine.py", "mine.py"]
    for file in tmp_path.iterdir():
        file.unlink()  # the process has its own copies: another machine need not see the folder
    mine = process(source)
    try:
        assert mine.score(SAMPLES) == [3.0, 3.0]
    finally:
        mine.stop()


def test_a_module_is_found_where_this_process_would_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "def score(prompts, completions): return [5.0] * 2", "module_of_mine_7.py")
    monkeypatch.syspath_prepend(tmp_path)
    mine = process(read_source("module_of_mine_7:score"))
    try:
        assert mine.score(SAMPLES) == [5.0, 5.0]
    finally:
        mine.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_this", "mine cannot be imported: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "mine cannot be imported: SystemExit: 3"),
        ("import os; os._exit(4)", "mine ended the process that imported it, with code 4"),
        ("import time; time.sleep(60)", "was not imported within 2 s; do less at import, or raise its start_timeout_s"),
        ("def other(prompts, completions): pass", "mine has no function 'score'; it has other"),
        ("open('table.csv')", "FileNotFoundError.*; data files beside it are not sent along"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(FunctionError, match=said):
        read_source(written(tmp_path, text), start_timeout_s=2.0)


@pytest.mark.parametrize(
    ("path", "said"), [("score", "names no function"), ("gone.py:score", "there is no file gone.py")]
)
def test_a_path_that_leads_nowhere_is_refused(path: str, said: str) -> None:
    with pytest.raises(FunctionError, match=said):
        read_source(path)


def test_secrets_stay_out_of_what_a_function_raises_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that begins just before the reason is cut short."""
    monkeypatch.setenv("MY_JUDGE_TOKEN", "very-secret-value-of-mine")
    text = (
        "import os\n"
        "def score(prompts, completions, **rest):\n"
        "    print('asking with', os.environ['MY_JUDGE_TOKEN'], flush=True)\n"
        "    raise RuntimeError('x' * 265 + ' denied to ' + os.environ['MY_JUDGE_TOKEN'])\n"
    )
    mine = process(read_source(written(tmp_path, text)))
    with caplog.at_level(logging.INFO):
        [first, _] = mine.score(SAMPLES)
        mine.stop()
    assert isinstance(first, NotScored) and "denied to ***" in first.reason and "very" not in first.reason
    assert "very-secret" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [True, False])
def test_a_function_ends_with_the_process_that_asked_it(hangs: bool, tmp_path: Path) -> None:
    """Also when that one is killed and can clean up nothing."""
    marker = tmp_path / "pid"
    text = f"import os, time\ndef score(prompts, completions):\n    open('{marker}', 'w').write(str(os.getpid()))\n"
    path = written(tmp_path, text + ("    time.sleep(60)\n" if hangs else "    return [1.0]\n"))
    script = (
        "from raylign.reward.functions import read_source\n"
        "from raylign.reward.function_process import FunctionProcess\n"
        "from raylign.reward.samples import Sample\n"
        f"code = read_source({path!r}).code\n"
        "asked = [Sample('q', 'a', (), (), '', None, {})]\n"
        "process = FunctionProcess(code, timeout_s=60, start_timeout_s=60)\n"
        "process.score(asked)\n"
        "input()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: marker.is_file() and marker.read_text() != "")
        child = psutil.Process(int(marker.read_text()))
        folder = Path(child.cmdline()[5])
        assert folder.is_dir()
    finally:
        parent.kill()
        parent.wait()
    child.wait(timeout=30)
    assert not folder.exists()


def wait_until(holds: Callable[[], bool]) -> None:
    """For another process; the test's own timeout is the deadline."""
    while not holds():
        threading.Event().wait(0.02)


def test_the_file_of_an_installed_function_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Kept answers to a suite are known by its content."""
    (tmp_path / "installed" / "grading").mkdir(parents=True)
    for file in ("__init__", "grading/__init__", "grading/one"):
        (tmp_path / "installed" / f"{file}.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_file("installed.grading.one:score") == tmp_path / "installed" / "grading" / "one.py"
    assert installed_file("installed:score") == tmp_path / "installed" / "__init__.py"
    for nowhere in ("installed.two:score", "installed.grading.one.two:score", "nobody:score", "mine.py:score", ""):
        assert installed_file(nowhere) is None
