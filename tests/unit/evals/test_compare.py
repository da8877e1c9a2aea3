"""Who is preferred: planted shares come out, a control is undecided, length is told from quality, pages are safe."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from raylign.app.commands.compare import Grading, compare_models
from raylign.app.commands.evaluate import EvalSettings
from raylign.conf.errors import DataError, UserError
from raylign.evals.compare import compare, equal_length_share
from raylign.evals.compare_page import UNDECIDED, headline, lines, remarks, write_page
from raylign.evals.results import PromptScore, SuiteResult

HOSTILE = "</div><script>alert(1)</script>"


def result(
    scores: list[float | None], words: list[int] | None = None, *, digest: str = "s", text: str = "w"
) -> SuiteResult:
    lengths = words or [5] * len(scores)
    rows = [
        PromptScore(f"{i}", f"prompt {i}", (" ".join([text] * n),), (score,), "" if score is not None else "it failed")
        for i, (score, n) in enumerate(zip(scores, lengths, strict=True))
    ]
    return SuiteResult("s", "", "m", "d", digest, "score", None, 0.0, tuple(rows))


def test_shares_are_those_of_the_votes_and_ties_are_halves():
    better, worse = result([1.0] * 60 + [0.0] * 20 + [0.5] * 20), result([0.0] * 60 + [1.0] * 20 + [0.5] * 20)

    found = compare([better, worse, better], ["a", "b", "c"])

    assert found.share(0, 1).value == pytest.approx(0.7) and found.share(1, 0).value == pytest.approx(0.3)
    low, high = found.share(0, 1).low, found.share(0, 1).high
    assert low is not None and high is not None and 0.6 < low < 0.7 < high < 0.8
    assert found.share(1, 0).low == pytest.approx(1 - high)
    assert found.share(0, 2).value == 0.5 and not found.pairs[1].decided and found.pairs[1].p == 1.0
    assert found.pairs[0].p < 1e-4
    assert headline(found) == "a is preferred to b: on 70\u00a0% of 100 prompts"


@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        outcome = rng.choice(3, p=[0.5, 0.2, 0.3], size=60)
        share = compare([result((outcome == 0) * 1.0), result((outcome == 1) * 1.0)], ["a", "b"]).pairs[0].share
        held += share.low <= 0.65 <= share.high  # type: ignore[operator]
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.slow
def test_equal_models_are_undecided_whatever_their_number():
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(100):
        found = compare([result(list(rng.normal(size=50))) for _ in range(4)], list("abcd"))
        wrong += headline(found) != UNDECIDED
    assert wrong <= 10  # 5 expected; without the correction about 20


def test_a_preference_for_length_alone_vanishes_at_equal_length():
    rng = np.random.default_rng(2)
    first, second = rng.integers(40, 200, 3000).astype(float), rng.integers(20, 120, 3000).astype(float)
    x = (first - second) / (first + second)

    def voted(quality: float) -> np.ndarray:
        return (rng.random(3000) < 1 / (1 + np.exp(-(quality + 4 * x)))) * 1.0

    null, better = voted(0.0), voted(1.0)
    fair = equal_length_share(null, first, second, confidence=0.95)
    good = equal_length_share(better, first, second, confidence=0.95)
    assert fair and good
    assert null.mean() > 0.65 and fair.low <= 0.5 <= fair.high  # type: ignore[operator]
    assert good.value == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)
    swapped = equal_length_share(1 - better, second, first, confidence=0.95)
    assert swapped and swapped.value == pytest.approx(1 - good.value, abs=1e-9)
    assert equal_length_share(null, first, first, confidence=0.95) is None


def test_a_verdict_that_length_alone_made_is_remarked_on():
    rng = np.random.default_rng(3)
    first, second = rng.integers(30, 90, 400), rng.integers(20, 60, 400)
    x = (first - second) / (first + second)
    longer = (rng.random(400) < 1 / (1 + np.exp(1.2 - 9 * x))) * 1.0
    a, b = result(list(longer), list(first)), result(list(1 - longer), list(second))

    found = compare([a, b], ["a", "b"])

    assert found.pairs[0].decided and found.pairs[0].share.value > 0.5
    assert any("length decides" in one for one in remarks(found))
    one_sided = compare([result([1.0] * 30, [50] * 30), result([0.0] * 30, [10] * 30)], ["a", "b"])
    assert any("extrapolated" in one for one in remarks(one_sided))


def test_several_answers_a_prompt_are_one_vote():
    many = SuiteResult("s", "", "m", "d", "s", "score", None, 0.0, tuple(
        PromptScore(f"{i}", "p", ("x", "y"), (1.0, 0.0)) for i in range(20)
    ))  # fmt: skip
    half = result([0.5] * 20)

    both = SuiteResult("s", "", "m", "d", "s", "score", None, 0.0, tuple(
        PromptScore(f"{i}", "p", ("x", "y"), (0.5, 0.5)) for i in range(20)
    ))  # fmt: skip
    share = compare([many, both], ["a", "b"]).pairs[0].share
    assert (share.value, share.count) == (0.5, 20)
    assert compare([many, half], ["a", "b"]).pairs[0].p == 1.0


def test_prompts_without_a_grade_are_left_out_and_told():
    found = compare([result([1.0, None, 1.0]), result([0.0, 0.0, None])], ["a", "b"])

    assert found.pairs[0].share.count == 1
    assert [model.failed for model in found.models] == [1, 1]
    assert sum("no grade" in one for one in remarks(found)) == 2
    with pytest.raises(DataError, match="nothing to compare"):
        compare([result([None]), result([1.0])], ["a", "b"])
    with pytest.raises(DataError, match="results are of different suites"):
        compare([result([1.0]), result([1.0], digest="other")], ["a", "b"])


def test_what_a_model_says_cannot_script_the_page(tmp_path: Path):
    found = compare([result([1.0, 0.0], text=HOSTILE), result([0.0, None])], [HOSTILE, "b"])

    write_page(tmp_path / "deep" / "page.html", found)

    text = (tmp_path / "deep" / "page.html").read_text()
    assert "<script" not in text and "alert(1)" in text and "no grade: it failed" in text
    assert json.loads(json.dumps(asdict(found)))["models"][1]["failed"] == 1
    assert any(line.startswith("! ") for line in lines(found))


def test_what_cannot_be_compared_is_refused(tmp_path: Path):
    settings = EvalSettings(tmp_path / "results", tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n')

    def refused(models: list[str], prompts: str, rules: list[str]) -> str:
        with pytest.raises(UserError) as caught:
            compare_models(models, prompts, Grading(rules), settings, tmp_path / "c.html", print)
        return str(caught.value)

    assert "name 2 to 8 models" in refused(["a"], str(rows), ["concise"])
    assert "a is named twice" in refused(["a", "b", "a"], str(rows), ["concise"])
    assert "nothing says which answer is better" in refused(["a", "b"], str(rows), [])
    assert "leave --rule" in refused(["a", "b"], "facts", ["concise"])
    assert "there is no such file" in refused(["a", "b"], str(tmp_path / "none.jsonl"), ["concise"])
    assert not (tmp_path / "c.html").exists()
