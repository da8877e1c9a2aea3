"""Reward gained where the ensemble is unsure: the two parts add up, a null is null, and what is asked can be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from raylign.data.types import FinishReason, SampleKey
from raylign.feedback.build import read
from raylign.feedback.settings import BuildSettings
from raylign.feedback.source import Source
from raylign.records.report.support import ASK_NEXT, ask_next, support, write_ask_next
from raylign.records.run_folder import RunPaths
from raylign.records.samples import SampleRow, write_samples


def row(n: int, model: float, spread: float | None, *, prompt: int = 0) -> SampleRow:
    components = {"model": model} | ({} if spread is None else {"model_spread": spread})
    return SampleRow(SampleKey(0, f"q{prompt}", n), f"What is {prompt}?", f"It is {n}.", (1,), (2,), (-0.1,), 0, 0, 1.0,
                     model, components, None, 0.0, FinishReason.STOP)  # fmt: skip


def rows(models: Sequence[float], spreads: Sequence[float]) -> list[SampleRow]:
    return [row(n, *both) for n, both in enumerate(zip(models, spreads, strict=True))]


def test_gain_in_thin_support_is_found_and_the_parts_add_up():
    draw = np.random.default_rng(1)
    start = rows(draw.normal(0, 1, 400), draw.uniform(0.1, 0.2, 400))
    hacked = rows(draw.normal(3, 1, 400), draw.uniform(0.15, 0.6, 400))
    found = support(start, hacked, (1, 9))
    assert found is not None and found.doubtful and found.gain == pytest.approx(3, abs=0.2)
    assert found.thin / found.gain == pytest.approx(0.9, abs=0.06) == pytest.approx(found.answers, abs=0.06)
    supported = [r for r in hacked if r.reward_components["model_spread"] <= found.limit]
    mean = np.mean([r.reward_components["model"] for r in start])
    rest = sum(r.reward_components["model"] - mean for r in supported) / 400
    assert found.gain == pytest.approx(found.thin + rest)


def test_a_gain_among_answers_as_usual_is_not_doubted():
    draw = np.random.default_rng(2)
    start, better = (rows(draw.normal(m, 1, 400), draw.uniform(0.1, 0.2, 400)) for m in (0, 2))
    found = support(start, better, (1, 9))
    assert found is not None and not found.doubtful
    assert found.answers == pytest.approx(0.1, abs=0.05) and found.thin / found.gain == pytest.approx(0.1, abs=0.06)
    assert support(start, [row(0, 1.0, None)], (1, 2)) is None


def test_the_least_sure_prompts_are_asked_first_in_a_log_that_a_build_reads(tmp_path: Path):
    last = [row(n, 0.0, 0.1 * prompt + 0.01 * n, prompt=prompt) for prompt in range(4) for n in range(3)]
    last += [row(7, 0.0, 9.0, prompt=9), row(7, 0.0, 9.0, prompt=9)]  # one answer alone is no choice
    paths = RunPaths(tmp_path)
    paths.samples.mkdir()
    write_samples(paths.samples_file(1), [row(0, 0.0, 0.1)])
    write_samples(paths.samples_file(5), last)
    found, path = write_ask_next(paths)
    assert found is not None and found.last_step == 5 and path == tmp_path / ASK_NEXT
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["prompt"][0]["content"] for line in lines] == [f"What is {n}?" for n in (3, 2, 1, 0)]
    assert {lines[0]["response_a"], lines[0]["response_b"]} == {"It is 2.", "It is 1."}
    path.write_text("".join(json.dumps({**line, "choice": "a"}) + "\n" for line in lines))
    assert read(Source(logs=(path,)), BuildSettings()).events["choice"].to_list() == ["a"] * 4
    assert len(ask_next(last, most=2)) == 2 and ask_next([row(0, 1.0, None)]) == []
