"""Corrections inside conversations: how well they are told, and what they become."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from raylign.feedback.corrections import is_correction
from raylign.feedback.events import hash_user
from raylign.feedback.settings import SplitSettings
from raylign.feedback.splits import draw

TURNS = Path(__file__).with_name("correction_turns.jsonl")
ALL_TRAIN = ("split.eval=0", "split.test=0")

# As docs/feedback.md states them. The rules were written with the first part in view and never changed for the second.
STATED = {"tuned": (0.98, 0.92), "held_out": (0.85, 0.60)}


@pytest.mark.parametrize("part", STATED)
def test_precision_and_recall_are_what_the_docs_state(part: str):
    rows = [json.loads(line) for line in TURNS.read_text().splitlines()]
    turns = pl.DataFrame([row for row in rows if row["part"] == part]).with_columns(told=is_correction(pl.col("text")))
    right = turns.filter("told", "correction").height
    precision = right / turns.filter("told").height
    recall = right / turns.filter("correction").height

    assert turns.height >= 40 and turns["correction"].sum() * 2 == turns.height
    assert (precision, recall) >= STATED[part] and recall >= STATED[part][1], (precision, recall)


def conversation(*contents: str) -> list[tuple[str, str]]:
    return [(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]


def messages(row: dict) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in row["messages"]]


def test_the_accepted_answer_is_asked_for_in_the_final_words(make, run_build):
    history = conversation("How do I sort a list?", "Use list.sort().", "No, I meant in Java")
    built = run_build([make(1, "thumb", history, response_a="You're right, sorry! Use Collections.sort().", thumb=1)],
                      *ALL_TRAIN)  # fmt: skip
    (row,) = built.rows("sft")
    # The wrong answer is not in the row, nor the apology for it.
    assert messages(row) == [
        ("user", "How do I sort a list?\n\nI meant in Java"),
        ("assistant", "Use Collections.sort()."),
    ]
    assert (row["rules"], row["events"]) == (["in_conversation"], ["e1"])
    assert built.rows("pairs") == []


def test_an_answer_the_person_thanked_for_is_accepted(make, run_build):
    history = conversation("Capital of Australia?", "Sydney.", "That's wrong.", "Canberra.", "Thanks! And of Peru?")
    built = run_build([make(1, "thumb", history, response_a="Cusco.", thumb=-1)], *ALL_TRAIN,
                      "pairs.in_conversation=true")  # fmt: skip
    (row,) = built.rows("sft")
    assert messages(row) == [("user", "Capital of Australia?"), ("assistant", "Canberra.")]
    (pair,) = built.rows("pairs")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("Canberra.", "Sydney.")
    assert pair["weight"] == 0.2


@pytest.mark.parametrize("last", ["That's wrong too.", "And of Peru?", "Thanks, but it is smaller than that."])
def test_an_answer_nobody_accepted_is_not_imitated(last: str, make, run_build):
    history = conversation("Capital of Australia?", "Sydney.", "That's wrong.", "Melbourne.", last)
    assert run_build([make(1, "thumb", history, thumb=-1)], *ALL_TRAIN).rows("sft") == []


def test_a_correction_that_tells_the_answer_does_not_put_it_into_the_question(make, run_build):
    history = conversation("What is 6 times 7?", "It is 43.", "It should be 42.")
    (row,) = run_build([make(1, "thumb", history, response_a="It is 42.", thumb=1)], *ALL_TRAIN).rows("sft")
    assert messages(row) == [("user", "What is 6 times 7?"), ("assistant", "It is 42.")]


def test_an_apology_alone_is_no_answer(make, run_build):
    history = conversation("How do I sort a list?", "Use list.sort().", "No, I meant in Java")
    said = make(1, "thumb", history, response_a="You're right, sorry!", thumb=1)
    rows = run_build([said], *ALL_TRAIN, "sft.min_chars=0").rows("sft")
    assert [row["messages"][-1]["content"] for row in rows] == ["You're right, sorry!"]  # as it stood, nothing cut


def test_what_is_no_correction_stays_a_conversation(make, run_build):
    history = conversation("Hello?", "Hello!", "No, thanks, that's all.")
    (row,) = run_build([make(1, "thumb", history, response_a="Goodbye.", thumb=1)], *ALL_TRAIN).rows("sft")
    assert messages(row) == [*history, ("assistant", "Goodbye.")]


def test_one_conversation_seen_from_several_events_counts_once(make, run_build):
    start = conversation("Capital of Australia?", "Sydney.", "That's wrong.", "Canberra.", "Thanks! And of Peru?")
    longer = [*start, *conversation("Thanks! And of Peru?", "Lima.", "And of Chile?")[1:]]
    events = [
        make(1, "thumb", start, response_a="Lima.", thumb=-1, conversation_id="c", user_id="u"),
        make(2, "thumb", longer, response_a="Santiago!!", thumb=-1, conversation_id="c", user_id="u"),
    ]
    assert len(run_build(events, *ALL_TRAIN).rows("sft")) == 1


def test_an_answer_edited_in_place_beats_what_was_logged(make, run_build):
    edited = conversation("Name a river.", "The Danube, in Europe.", "And a lake?")
    events = [
        make(1, "thumb", "Name a river.", response_a="The Danub.", thumb=-1, conversation_id="c", user_id="u"),
        make(2, "thumb", edited, response_a="Balaton", thumb=-1, conversation_id="c", user_id="u"),
        make(3, "thumb", "Name a river.", response_a="The Rhine.", thumb=-1, conversation_id="another", user_id="u"),
    ]
    built = run_build(events, *ALL_TRAIN, "pairs.in_conversation=true")
    (pair,) = built.rows("pairs")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("The Danube, in Europe.", "The Danub.")
    assert pair["events"] == ["e1", "e2"]


def test_an_event_that_was_dropped_does_not_come_back_by_its_correction(make, run_build):
    shares = SplitSettings(eval=0.4, test=0.1)
    people = {draw(f"user:{hash_user(f'u{i}', 'raylign')}", shares): f"u{i}" for i in range(60)}
    history = conversation("How do I sort a list?", "Use list.sort().", "No, I meant in Java")
    events = [
        make(1, "thumb", history, response_a="It has none.", thumb=-1, user_id=people["eval"]),
        make(2, "thumb", history, response_a="Use Collections.sort().", thumb=1, user_id=people["train"]),
    ]
    built = run_build(events, "split.eval=0.4", "split.test=0.1")
    assert built.dropped == {"e2": "split_overlap"}
    assert built.rows("sft") == []
