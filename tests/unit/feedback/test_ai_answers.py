"""Answers from seeds: near repeats, benchmarks, refusals and cut ones are left out, nothing is asked twice, bounded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from raylign.app.commands.feedback_answers import (
    Answered,
    AnswerSettings,
    answer_prompts,
    answered_lines,
    require_answers,
)
from raylign.app.commands.judge_open import Who
from raylign.conf.errors import DataError
from raylign.feedback.ai_answers import Example, new_answers, questions_of, read_answer, read_check, shown_examples
from raylign.feedback.build import build
from raylign.feedback.privacy import redactor_of
from raylign.feedback.settings import PrivacySettings
from raylign.feedback.source import Source

from tests.unit.reward.json_server import Asked, Reply, serving

SHOWN = redactor_of(PrivacySettings()).shown
NOTHING = pl.Series([], dtype=pl.String)
TASKS = ("wash a woollen coat", "sharpen a bread knife", "paint an iron gate", "fold a paper boat", "grow red onions")
SEEDS = [Example(f"How do I {task}?", f"To {task}, begin slowly.") for task in TASKS]
STORY = (
    "The lamp is taken from its hook, wiped with a dry cloth from the top to the foot, filled with new oil and lit "
    "again with a long match before it is hung up where everybody can see it in the evening."
)
QUESTION = re.compile(r"</examples>\n\n<question>\n(.*)\n</question>", re.DOTALL)
CHECKED = re.compile(r"<answer>\n(.*)\n</answer>\n\nSay", re.DOTALL)


def prompt(number: int) -> str:
    words = ("kettle", "violin", "parachute", "glacier", "marathon", "notary", "beehive", "satellite")
    return f"What should I know before I buy or visit a {words[number]} number {number * 7}?"


def test_what_is_near_or_known_is_not_asked() -> None:
    known = "Natalia sold clips to 48 of her friends in April, and then half as many in May."
    asked = [prompt(0), SEEDS[2].question.upper(), prompt(0) + "!", f"A riddle: {known}", prompt(1)]
    found = questions_of([(("user", text),) for text in asked], SEEDS, pl.Series([known]), SHOWN, near=0.6, ngram=8)
    assert [question.shown for question in found.questions] == [prompt(0), prompt(1)]
    assert (found.near, found.contaminated) == (2, 1)


def test_long_repeats_refusals_and_benchmarks_are_not_new_and_short_ones_are() -> None:
    answers = ["Yes.", "Yes.", STORY, STORY.upper(), "I'm sorry, but I cannot help with that.", "one two three four"]
    new = new_answers(answers, SEEDS, pl.Series(["zero one two three four"]), near=0.6, ngram=4)
    assert new.tolist() == [True, True, True, False, False, False]
    assert not new_answers([STORY], [Example("?", STORY)], NOTHING, near=0.6, ngram=8)[0], "a seed's own words"


def test_examples_follow_from_the_question_alone() -> None:
    found = questions_of([(("user", prompt(n)),) for n in range(8)], SEEDS, NOTHING, SHOWN, near=0.6, ngram=8)
    texts = [shown_examples(SEEDS, question, seed=0) for question in found.questions]
    assert texts == [shown_examples(SEEDS, question, seed=0) for question in reversed(found.questions)][::-1]
    assert len(set(texts)) > 4 and all(text.count("<question>") == 3 for text in texts)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<answer>\nBlue.\n</answer>", "Blue."),
        ("Sure, here it is:\n<answer>Blue,\nor green</answer>\nI hope this helps!", "Blue,\nor green"),
        ("Blue.</answer>", "Blue."),  # the model went on after an opening mark of its own
        ("<answer>Blue and then", None),
        ("Blue.", None),
        ("<answer> </answer>", None),
    ],
)
def test_an_answer_stands_between_its_marks(reply: str, answer: str | None) -> None:
    assert read_answer(reply) == answer


def test_a_check_is_read_from_the_end_alone() -> None:
    said = ["It is right.\nVerdict: good", "**Verdict: Bad.**", "Verdict: good\nMostly.", "good", "Verdict: fine"]
    assert [read_check(reply) for reply in said] == [True, False, None, None, None]


@contextmanager
def writer(answer: Callable[[str], str], check: str = "It is right.\nVerdict: good") -> Iterator[Asked]:
    def replied(body: object, number: int) -> Reply:
        text = body["messages"][0]["content"]  # type: ignore[index]
        if asked := QUESTION.search(text):
            said = answer(asked[1])
        else:
            said = check.replace("good", "bad") if "POOR" in CHECKED.search(text)[1] else check  # type: ignore[index]
        return Reply({"choices": [{"message": {"content": said}}]})

    with serving(replied) as asked:
        yield asked


def plain(question: str) -> str:
    return (
        f"<answer>POOR {question[-3:]}</answer>"
        if "violin" in question
        else f"<answer>Ask for {question[-12:]}</answer>"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def lines(name: str, rows: list[dict[str, object]]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": prompt(3)}]  # fmt: skip
    lines("prompts.jsonl", [{"prompt": prompt(0)}, {"prompt": prompt(1)}, {"prompt": prompt(2)}, {"prompt": talk},
                            {"prompt": prompt(0)}, {"other": 1}])  # fmt: skip
    rows: list[dict[str, object]] = [{"prompt": seed.question, "completion": seed.answer} for seed in SEEDS[1:]]
    rows += [{"messages": [{"role": "user", "content": SEEDS[0].question},
                           {"role": "assistant", "content": SEEDS[0].answer}]}, {"prompt": "no answer"}]  # fmt: skip
    lines("seeds.jsonl", rows)
    (tmp_path / "good.md").write_text("- Be right.\n")
    return tmp_path


def run(folder: Path, url: str, *, max_calls: int = 0) -> Answered:
    settings = AnswerSettings(str(folder / "prompts.jsonl"), str(folder / "seeds.jsonl"), folder / "good.md",
                              folder / "ai.jsonl", max_calls)  # fmt: skip
    return answer_prompts(settings, Who(model="wise", url=url, deadline_s=10), SHOWN, lambda said: None)


def written(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "ai.jsonl").read_text().splitlines()]


def test_good_answers_become_rows_of_a_build_and_bad_ones_undesirable(folder: Path) -> None:
    with writer(plain) as asked:
        found = run(folder, asked.url)
    assert (found.prompts, found.good, found.bad, found.asked, len(asked.bodies)) == (4, 3, 1, 8, 8)
    rows = written(folder)
    assert {row["source"] for row in rows} == {"ai"} and {row["annotator_id"] for row in rows} == {
        f"ai:wise@{found.version}"
    }
    assert [row["thumb"] for row in rows] == [1, -1, 1, 1] and rows[0]["comment"] == "It is right. Verdict: good"
    assert [turn["role"] for turn in rows[3]["prompt"]] == ["user", "assistant", "user"]  # type: ignore[index,union-attr]
    assert any("3 answers are good by its own check, 1 are not" in line for line in answered_lines(found, folder))

    source = Source(logs=(folder / "ai.jsonl",), overrides=("split.eval=0", "split.test=0"))
    result = build(source, folder / "built", with_report=False)
    made = {(file.kind, file.split): file.rows for file in result.produced}
    assert made["sft", "train"] == 3 and made["kto", "train"] == 4
    off = build(Source(logs=(folder / "ai.jsonl",), overrides=("trust.ai=off",)), folder / "off", with_report=False)
    assert next(drop.events for drop in off.event_drops if drop.rule == "ai_off") == 4


def test_nothing_is_asked_twice_and_the_bound_holds(folder: Path) -> None:
    with writer(plain) as asked:
        first = run(folder, asked.url, max_calls=5)
        assert (first.asked, first.left, len(written(folder)), len(asked.bodies)) == (4, 2, 2, 4)
        assert any("2 prompts are left" in line for line in answered_lines(first, folder))
        second = run(folder, asked.url, max_calls=4)
        assert (second.asked, second.left, len(written(folder)), len(asked.bodies)) == (4, 0, 4, 8)
        assert run(folder, asked.url).asked == 0 and len(asked.bodies) == 8


def test_other_seeds_are_another_version(folder: Path) -> None:
    with writer(plain) as asked:
        before = run(folder, asked.url)
        with (folder / "seeds.jsonl").open("a") as more:
            more.write(json.dumps({"prompt": "What is a lighthouse?", "completion": "A tower with a lamp."}) + "\n")
        assert run(folder, asked.url).version != before.version


def test_nothing_usable_is_one_sentence_and_no_log(folder: Path) -> None:
    with writer(lambda question: "no marks") as asked:
        found = run(folder, asked.url)
    assert (found.cut, found.good) == (4, 0) and not (folder / "ai.jsonl").exists()
    with pytest.raises(DataError, match="no answer is new and good, so there is nothing to build with"):
        require_answers(found, folder / "ai.jsonl")


def test_personal_data_do_not_leave(folder: Path) -> None:
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "Write to anna@example.org about a kettle."}) + "\n")
    with writer(plain) as asked:
        run(folder, asked.url)
    assert "anna@example.org" not in json.dumps(asked.bodies)
    assert "anna@example.org" in json.dumps(written(folder)), "the event keeps the prompt; a build redacts it"


@pytest.mark.parametrize(("name", "said"), [("prompts.jsonl", "no row has a prompt"), ("seeds.jsonl", "too few")])
def test_files_without_rows_are_one_sentence(folder: Path, name: str, said: str) -> None:
    (folder / name).write_text('{"other": 1}\n')
    with pytest.raises(DataError, match=said):
        run(folder, "http://127.0.0.1:9/v1")
