"""Prompts from seeds: near repeats and benchmarks are left out, nothing is asked twice, requests are bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from raylign.app.commands.feedback_prompts import PromptSettings, PromptsMade, make_prompts, prompts_lines
from raylign.app.commands.judge_open import Who
from raylign.conf.errors import DataError
from raylign.feedback.ai_prompts import read_prompts, shown_seeds, sift

from tests.unit.reward.json_server import Asked, Reply, serving

THINGS = ("pump", "filter", "valve", "lamp", "door", "engine", "battery", "ladder", "window", "printer")
SEEDS = [f"How do I repair the {thing} in my house without any tools?" for thing in THINGS]
NEW = "Explain in two sentences what a {} is made of and who invented it."


def sifted(*made: str, benchmark: tuple[str, ...] = ()):
    return sift(made, SEEDS, pl.Series(list(benchmark), dtype=pl.String), near=0.6, ngram=8)


def test_what_is_near_a_seed_or_an_earlier_prompt_is_left_out():
    found = sifted(NEW.format("bridge"), SEEDS[3].upper(), NEW.format("bridge") + "!", "Write a poem about rain.")
    assert found.kept == (NEW.format("bridge"), "Write a poem about rain.") and (found.near, found.contaminated) == (
        2,
        0,
    )


def test_a_run_of_words_of_a_benchmark_is_contamination():
    known = "Natalia sold clips to 48 of her friends in April, and then half as many in May."
    found = sifted(f"A riddle: {known}", "Natalia sold clips to others.", benchmark=(known,))
    assert found.kept == ("Natalia sold clips to others.",) and found.contaminated == 1


def test_requests_show_seeds_by_number_alone():
    texts = [shown_seeds(SEEDS, n, seed=0) for n in range(20)]
    assert texts == [shown_seeds(SEEDS, n, seed=0) for n in range(20)] and len(set(texts)) > 15
    assert all(text.count("\n\n- ") == 5 for text in texts) and texts[0] != shown_seeds(SEEDS, 0, seed=1)


@pytest.mark.parametrize(
    ("reply", "items"),
    [
        ("Here they are:\n1. One?\n2) Two\nlines\n3. Three", ["One?", "Two\nlines", "Three"]),
        ("No list at all", []),
        ("1. a\n2. b\n3. c\n4. d\n5. e\n6. f", ["a", "b", "c", "d", "e"]),
        ("1. \n2. b", ["b"]),
    ],
)
def test_a_numbered_list_is_read(reply: str, items: list[str]):
    assert read_prompts(reply) == items


@contextmanager
def writer() -> Iterator[Asked]:
    """Two new prompts a request, one of them the same each time, and a seed."""

    def answer(body: object, number: int) -> Reply:
        new = NEW.format(f"machine number {number} of town {7 * number}")
        said = f"1. {new}\n2. Write a poem about rain.\n3. {SEEDS[0]}"
        return Reply({"choices": [{"message": {"content": said}}]})

    with serving(answer) as asked:
        yield asked


def run(folder: Path, url: str, *, count: int = 500, max_calls: int = 60) -> PromptsMade:
    seeds = folder / "seeds.jsonl"
    rows = [{"prompt": seed} for seed in SEEDS[:-1]]
    rows += [{"prompt": [{"role": "user", "content": SEEDS[-1]}]}, {"prompt": SEEDS[0]}, {"other": 1}]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = PromptSettings(str(seeds), folder / "more.jsonl", count, max_calls)
    return make_prompts(settings, Who(model="wise", url=url, deadline_s=20), lambda said: None)


def test_nothing_is_asked_twice_and_requests_are_bounded(tmp_path: Path):
    with writer() as asked:
        first = run(tmp_path, asked.url, max_calls=7)
        assert (first.seeds, first.requests, len(asked.bodies)) == (10, 7, first.asked)
        assert first.written == 3 * 7 and first.sifted.near >= 13
        rows = [json.loads(line) for line in (tmp_path / "more.jsonl").read_text().splitlines()]
        assert [row["prompt"] for row in rows] == list(first.sifted.kept) and rows[0]["source"] == "ai"
        again = run(tmp_path, asked.url, max_calls=7)
        assert (again.asked, again.sifted) == (0, first.sifted)
        more = run(tmp_path, asked.url, max_calls=9)
        assert more.asked <= 2 and len(asked.bodies) == first.asked + more.asked
        few = run(tmp_path, asked.url, count=1)
        assert len(few.sifted.kept) == 1 and few.requests == 50  # one look
    assert any("near a seed or an earlier one" in line for line in prompts_lines(first, tmp_path))


def test_too_few_seeds_are_one_sentence(tmp_path: Path):
    (tmp_path / "few.jsonl").write_text('{"prompt": "One?"}\n')
    with pytest.raises(DataError, match="1 prompts are too few"):
        make_prompts(PromptSettings(str(tmp_path / "few.jsonl"), tmp_path / "o", 1, 1), Who(model="m"), print)
