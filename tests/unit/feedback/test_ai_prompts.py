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
from raylign.feedback.ai_prompts import bare_prompt, read_prompts, shown_seeds, sift
from raylign.feedback.privacy import redactor_of
from raylign.feedback.settings import PrivacySettings

from tests.unit.reward.json_server import Asked, Reply, serving

THINGS = ("pump", "filter", "valve", "lamp", "door", "engine", "battery", "ladder", "window", "printer")
SEEDS = [f"How do I repair the {thing} in my house without any tools?" for thing in THINGS]
SHOWN = redactor_of(PrivacySettings()).shown
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


@pytest.mark.parametrize(
    ("item", "prompt"),
    [
        ("Sure, here is a new question: How deep is the sea?", "How deep is the sea?"),
        ("Sure! How deep is the sea?", "How deep is the sea?"),
        ("Here's another example of the same kind: Write a poem.", "Write a poem."),
        ("**Question 3:** How deep is the sea?", "How deep is the sea?"),
        ("Task: Write a poem.", "Write a poem."),
        ('"How deep is the sea?"', "How deep is the sea?"),
        ("**How deep is the sea?**", "How deep is the sea?"),
        ("How deep is the sea?\n\nLet me know if you want more!", "How deep is the sea?"),
        ("How deep is the sea?\n\n---\n\nI hope these help.", "How deep is the sea?"),
        ("How deep is the sea?\n\nI will write these in a numbered list.", "How deep is the sea?"),
        ("How deep is the sea?\nAnswer: Eleven kilometres.", "How deep is the sea?"),
        ("Sure, here are five new questions:", ""),
        # What looks like it and is the prompt's own:
        ("Here is a list of numbers: 3, 5, 8. Sort them.", "Here is a list of numbers: 3, 5, 8. Sort them."),
        ("Sure, I know him, but who is he? Explain.", "Sure, I know him, but who is he? Explain."),
        ('"Wherefore" and "why": what is the difference?"', '"Wherefore" and "why": what is the difference?"'),
        ("Read this.\n\nThe sea is deep.\n\nWhat is it about?", "Read this.\n\nThe sea is deep.\n\nWhat is it about?"),
        ("Plan a week.\n\nI will be in Rome.", "Plan a week.\n\nI will be in Rome."),
        ("Let me know how tea is made.", "Let me know how tea is made."),
        ("What is the answer: yes or no?", "What is the answer: yes or no?"),
        ("Note: the sea is deep. How deep?", "Note: the sea is deep. How deep?"),
        ("Question the witness: who was there?", "Question the witness: who was there?"),
    ],
)
def test_words_around_a_prompt_are_left_out_and_the_prompts_own_are_not(item: str, prompt: str):
    assert bare_prompt(item) == prompt


def test_a_prompt_that_goes_round_in_circles_is_none():
    looped = "Translate 'good morning' into German:" + "\n- 'Guten Morgen'" * 40
    assert read_prompts(f"1. {looped}\n2. How deep is the sea?") == ["How deep is the sea?"]


def test_bold_numbers_are_a_list_and_items_that_decline_are_none():
    assert read_prompts("**1.** One?\n**2.** Two?\n3. I'm sorry, but I cannot help with that.") == ["One?", "Two?"]


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
    return make_prompts(settings, Who(model="wise", url=url, deadline_s=20), SHOWN, lambda said: None)


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
        make_prompts(PromptSettings(str(tmp_path / "few.jsonl"), tmp_path / "o", 1, 1), Who(model="m"), SHOWN, print)
