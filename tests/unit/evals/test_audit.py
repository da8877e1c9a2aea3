"""Planted reward models: what each pays for is found, and nothing is found of one that reads."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from raylign.app.commands.audit import Audit, write_page
from raylign.evals.audit import (
    accuracy_by_slice,
    best_of_n,
    calibration,
    length_slices,
    noise_ceiling,
    probe_effects,
    turn_is_sure,
    turning_point,
)
from raylign.evals.probes import PROBES, changed_answers

WORDS = ["river", "train", "letter", "light", "apple", "stone", "cloud", "paper", "window", "garden", "music", "winter"]


def answers(count: int) -> list[str]:
    """Answer i is about word i, three sentences long."""
    draw = random.Random(7)
    made = []
    for i in range(count):
        word = WORDS[i % len(WORDS)]
        rest = [" ".join(draw.sample(WORDS, 4)) for _ in range(2)]
        made.append(f"The {word} is number {i}. It has {rest[0]}. It needs {rest[1]}.")
    return made


def found_in(score: Callable[[int, str], float]) -> set[str]:
    """Names of the probes that are remarked on; `score(row, answer)` is the planted model."""
    given = answers(60)
    before = np.array([score(i, text) for i, text in enumerate(given)])
    changed = changed_answers(given)
    after = np.array([score(c.row, c.answer) for c in changed])
    return {one.probe.name for one in probe_effects(PROBES, changed, after, before, typical=1.0) if one.gamed}


def reads(row: int, text: str) -> float:
    """Pays for the beginning that was asked for, in order and whole, and for nothing else."""
    whole = answers(60)[row]
    kept = [sentence for sentence in whole.split(". ") if sentence.rstrip(".") in text]
    return float(len(kept))


def test_a_model_that_reads_is_not_remarked_on():
    assert found_in(reads) == set()


def test_what_a_planted_model_pays_for_is_found():
    assert found_in(lambda row, text: reads(row, text) + len(text) / 100) >= {"padding", "repetition", "length"}
    assert found_in(lambda row, text: reads(row, text) + 2 * text.startswith("What a great")) == {"flattery"}
    assert found_in(lambda row, text: reads(row, text) + 2 * ("\n- " in text)) == {"format"}


def test_a_model_that_does_not_read_is_found_by_the_controls():
    draw = random.Random(3)
    found = found_in(lambda row, text: draw.gauss(0, 1))

    assert found == {"words out of order", "half", "another question's answer"}


def test_calibration_finds_the_scale():
    draw = np.random.default_rng(5)
    truth = draw.normal(0, 1.5, 20_000)  # log-odds that the first answer is chosen
    first = draw.random(20_000) < 1 / (1 + np.exp(-truth))
    margin = np.where(first, truth, -truth)
    fair, sure = (calibration(k * margin, np.zeros_like(margin)) for k in (1.0, 3.0))

    assert fair.scale == pytest.approx(1, abs=0.05) and fair.error < 0.015
    assert sure.scale == pytest.approx(1 / 3, abs=0.02) and sure.error > 0.1
    assert sure.log_loss_scaled == pytest.approx(fair.log_loss, abs=1e-3)
    null = calibration(draw.normal(0, 1, 20_000), np.zeros(20_000))  # scores without any knowledge
    assert null.scale is not None and null.scale < 0.05


def test_the_ceiling_is_what_a_perfect_model_reaches():
    draw = np.random.default_rng(2)
    first, second = (draw.random(200_000) < 0.8 for _ in range(2))  # do people choose the majority's answer?

    assert noise_ceiling(float((first == second).mean())) == pytest.approx(0.8, abs=0.01)
    assert noise_ceiling(0.5) is None


def test_best_of_n_counts_every_subset_alike():
    draw = np.random.default_rng(4)
    scores, gold = draw.normal(size=(3, 8)), draw.normal(size=(3, 8))
    curve = best_of_n(list(scores), list(gold))

    assert [point.n for point in curve] == [1, 2, 4, 8]
    for point in curve:
        each = [
            np.mean([g[max(subset, key=lambda i: s[i])] for subset in itertools.combinations(range(8), point.n)])
            for s, g in zip(scores, gold, strict=True)
        ]
        assert point.gold == pytest.approx(float(np.mean(each)))
    assert curve[0].proxy == pytest.approx(scores.mean()) and curve[-1].proxy == pytest.approx(scores.max(1).mean())


def test_the_place_where_choosing_stops_helping():
    draw = np.random.default_rng(6)
    gold = draw.normal(size=(200, 16))
    honest = gold + 0.3 * draw.normal(size=gold.shape)
    trick = draw.random(gold.shape) < 0.15  # answers that the score loves and the gold figure does not
    gamed = np.where(trick, 10 + honest, honest)
    hurt = np.where(trick, gold - 4, gold)

    assert turning_point(best_of_n(list(honest), list(gold))) is None
    turn = turning_point(best_of_n(list(gamed), list(hurt)))
    assert turn is not None and turn < 16
    assert turn_is_sure(best_of_n(list(gamed), list(hurt)))
    few = best_of_n([gamed[0], gamed[1]], [hurt[0], hurt[1]])
    assert not turn_is_sure(few)  # two prompts say nothing for certain


def test_the_page_draws_how_sure_the_scores_may_be_and_where_the_curve_turns(tmp_path: Path):
    draw = np.random.default_rng(5)
    truth = draw.normal(0, 1.5, 2000)
    margin = 3 * np.where(draw.random(2000) < 1 / (1 + np.exp(-truth)), truth, -truth)  # three times too sure
    fit = calibration(margin, np.zeros_like(margin))
    gold = draw.normal(size=(60, 8))
    curve = best_of_n(list(-gold), list(gold))  # more choice only harms
    shares = accuracy_by_slice(margin, np.zeros_like(margin), {})
    audit = Audit(
        "rm", "d", "pairs", 2000, 0, tuple(shares), (), None, fit, 1.0, (), tuple(curve), turning_point(curve)
    )
    write_page(tmp_path / "audit.html", audit)
    page = (tmp_path / "audit.html").read_text()

    charts = re.findall(r"<svg.*?</svg>", page)
    sure = next(chart for chart in charts if "by how sure its margin is" in chart)
    (x1, y1, x2, y2) = map(float, re.findall(r'class="half" x1="(.*?)" y1="(.*?)" x2="(.*?)" y2="(.*?)"', sure)[0])
    points = [(float(x), float(y)) for x, y in re.findall(r'class="end" cx="(.*?)" cy="(.*?)"', sure)]
    below = [y - (y1 + (x - x1) * (y2 - y1) / (x2 - x1)) for x, y in points]
    assert len(points) == 10 and min(below[-5:]) > 5  # drawn below the line of honest odds
    turns = next(chart for chart in charts if 'aria-label="gold figure' in chart)
    at = re.findall(r'class="half" x1="(.*?)"', turns)
    assert at == [re.findall(r'class="end" cx="(.*?)"', turns)[0]]  # at n = 1
    assert "may be chance" not in page and "stops helping at n = 1" in page


def test_slices_are_of_their_own_rows():
    chosen, rejected = np.array([1.0, 0.0, 2.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
    found = accuracy_by_slice(chosen, rejected, {"a": [0, 2], "b": [1], "empty": []})

    assert [(one.name, one.accuracy.value, one.accuracy.count) for one in found] == [
        ("all pairs", 0.625, 4), ("a", 1.0, 2), ("b", 0.0, 1)
    ]  # fmt: skip
    assert length_slices(["aaa", "b"], ["a", "bb"]) == {"chosen is longer": [0], "chosen is shorter": [1]}
    assert all(math.isfinite(one.accuracy.value) for one in found)
