"""Reward functions of a user's own: three signatures, and every way in which one can fail is named, never 0."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.reward.functions import FunctionError, FunctionProcess, Sample, Style, call_function, read_source

SAMPLES = [
    Sample("What is 2+2?", text, (("user", "What is 2+2?"),), (5, 6), f"What is 2+2?{text}", "sums", "4", {"level": i})
    for i, text in enumerate(["4", "five"])
]


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return f"{folder / name}:score"


FORMS = {
    Style.trl: "def score(prompts, completions, ground_truth, level, **rest):\n"
    "    return [float(c[0]['content'] == g) + l for c, g, l in zip(completions, ground_truth, level)]",
    Style.verl: "def score(data_source, solution_str, ground_truth, extra_info=None):\n"
    "    return {'score': float(solution_str == ground_truth) + extra_info['level'], 'acc': 1}",
    Style.openrlhf: "def score(queries, prompts, labels, **rest):\n"
    "    return {'rewards': [float(q[len(p):] == l) + i for i, (q, p, l) in enumerate(zip(queries, prompts, labels))]}",
}


@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("is_async", [False, True])
def test_the_signatures_of_three_trainers_are_recognised_and_called(
    style: Style, is_async: bool, tmp_path: Path
) -> None:
    source = read_source(written(tmp_path, ("async " if is_async else "") + FORMS[style]))
    assert source.style is style and source.name == "score"
    process = FunctionProcess(source, timeout_s=60)
    try:
        assert process.score(SAMPLES) == [1.0, 1.0]
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('gone')", "it raised KeyError: 'gone'"),
        ("return [None, float('nan')]", ["it gave None: not applicable", "it gave nan"]),
        ("return [1.0]", "it gave 1 values for 2 answers"),
        ("return ['good', 2]", ["it gave str, not a number", 2.0]),
    ],
)
def test_what_is_no_score_is_a_named_failure(body: str, said: str | list[object]) -> None:
    names: dict[str, object] = {}
    exec(f"def score(prompts, completions, **rest):\n    {body}", names)
    expected = said if isinstance(said, list) else [said, said]
    assert call_function(names["score"], Style.trl, SAMPLES) == expected


def test_a_function_that_hangs_or_dies_fails_its_samples_and_serves_again(tmp_path: Path) -> None:
    text = (
        "import os, time\n"
        "def score(prompts, completions, **rest):\n"
        "    word = completions[0][0]['content']\n"
        "    if word == '4': os._exit(9)\n"
        "    if word == 'wait': time.sleep(60)\n"
        "    return [7.0] * len(prompts)\n"
    )
    process = FunctionProcess(read_source(written(tmp_path, text)), timeout_s=6)
    waiting = [Sample("q", "wait", (("user", "q"),), (), "q", "", None, {})]
    try:
        assert process.score(SAMPLES)[0] == "its process ended with code 9"
        assert process.score(waiting) == ["it did not answer within 6 s"]
        assert process.score(SAMPLES[1:]) == [7.0]
    finally:
        process.stop()


def test_what_lies_beside_the_file_goes_along(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("VALUE = 3.0\n")
    path = written(tmp_path, "from helper_of_mine import VALUE\ndef score(prompts, completions): return [VALUE] * 2")
    source = read_source(path)
    for file in tmp_path.iterdir():
        file.unlink()  # the process has its own copies: another machine need not see the folder
    process = FunctionProcess(source, timeout_s=60)
    try:
        assert process.score(SAMPLES) == [3.0, 3.0]
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_this", "mine cannot be imported: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "mine cannot be imported: SystemExit: 3"),
        ("def other(prompts, completions): pass", "mine has no function 'score'; it has other"),
        ("def score(a, b): pass", r"takes \(a, b\), which is no signature of a reward function"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(FunctionError, match=said):
        read_source(written(tmp_path, text))


@pytest.mark.parametrize(("path", "said"), [("score", "names no function"), ("gone.py:score", "there is no such file")])
def test_a_path_that_leads_nowhere_is_refused(path: str, said: str) -> None:
    with pytest.raises(FunctionError, match=said):
        read_source(path)
