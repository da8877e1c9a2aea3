"""Slices of a suite: a loss that the mean hides is found, and where there is none, nothing is."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from raylign.app.commands.evaluate_table import table
from raylign.evals.result_pages import write_eval_page
from raylign.evals.results import PromptScore, ResultStore, SuiteResult
from raylign.evals.slices import FEWEST, names_in, names_of, rows_by_slice, slice_lines
from raylign.evals.statistics import Range
from raylign.evals.suite_lines import suite_lines


def result(scores: dict[str, list[float | None]], *, binary: bool = True) -> SuiteResult:
    """Scores by topic."""
    rows = [
        PromptScore(f"{topic}-{i}", "q", ("a",), (score,), slices=(f"topic: {topic}",))
        for topic, values in scores.items()
        for i, score in enumerate(values)
    ]
    return SuiteResult("support", "", "m", "w", "d", "share right", Range(0, 1) if binary else None, 1.0, tuple(rows))


def test_a_loss_that_the_mean_hides_is_found_and_told(tmp_path: Path):
    old = result({"bills": [1.0] * 30, "travel": [0.0] * 30, "rare": [1.0] * (FEWEST - 1)})
    new = result({"bills": [0.0] * 15 + [1.0] * 15, "travel": [1.0] * 15 + [0.0] * 15, "rare": [0.0] * (FEWEST - 1)})

    lines = slice_lines([new], [old])

    assert [(line.part, line.worse, line.better) for line in lines] == [
        ("topic: bills", True, False), ("topic: travel", False, True), ("topic: rare", False, False),
    ]  # fmt: skip
    assert lines[2].p is None  # too few, although every one is lost
    whole = suite_lines([new], [old])
    shown = table(whole, "new", "old", tmp_path, lines)
    assert "topic: bills" in shown and "too few to say" in shown
    write_eval_page(tmp_path / "eval.html", whole, lines, [new], "new", "old")
    assert "Worse than old on support, topic: bills." in (tmp_path / "eval.html").read_text()


def test_slices_of_two_equal_models_are_told_apart_as_rarely_as_said():
    rng, found, runs = np.random.default_rng(3), 0, 60
    for _ in range(runs):
        models = [result({f"t{k}": [float(x) for x in rng.random(40) < 0.5] for k in range(5)}) for _ in range(2)]
        found += any(line.worse or line.better for line in slice_lines([models[0]], [models[1]]))

    assert found / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_one_model_by_itself_is_compared_with_the_rest_of_the_suite():
    alone = slice_lines([result({"bills": [1.0] * 20, "travel": [1.0] * 10 + [0.0] * 10})], None)
    scores = {"even": [0.1, 0.2, 0.3] * 5, "odd": [0.3, 0.2, 0.1] * 5, "low": [-5.0, -6.0] * 6}
    graded = {line.part: line.p for line in slice_lines([result(scores, binary=False)], None)}

    assert all(line.gain is None and line.p is not None and line.p < 0.01 for line in alone)
    assert graded["topic: low"] is not None and graded["topic: low"] < 0.01


def test_a_prompt_without_a_grade_belongs_to_its_slice_and_to_no_figure():
    lines = slice_lines([result({"bills": [1.0] * 12 + [None], "travel": [0.0] * 12})], None)

    assert [(line.failed, line.found.count if line.found else 0) for line in lines] == [(1, 12), (0, 12)]


def test_rows_say_which_slices_they_are_in():
    assert names_of({"topic": "bills", "rules": ["a", "b"], "persona": None, "other": "x"}) == (
        "topic: bills", "rules: a", "rules: b",
    )  # fmt: skip
    assert names_in('{"locale": "de"}') == ("locale: de",) and names_in("") == ()
    rows = [("topic: a", "locale: de"), ("topic: b", "locale: de"), ("topic: b", "locale: de")]
    assert rows_by_slice(rows) == {"topic: b": [1, 2], "topic: a": [0]}  # one locale is no slice
    assert rows_by_slice(rows, fewest=2) == {"topic: b": [1, 2]}


def test_results_keep_their_slices_and_those_of_before_there_were_any_are_read(tmp_path: Path):
    kept = result({"bills": [1.0]})
    store = ResultStore(tmp_path)
    store.keep("new", kept)
    old = asdict(kept)
    for row in old["rows"]:
        del row["slices"]
    (tmp_path / "old.json").write_text(json.dumps(old))

    assert store.find("new") == kept
    assert store.find("old") == replace(kept, rows=tuple(replace(row, slices=()) for row in kept.rows))
