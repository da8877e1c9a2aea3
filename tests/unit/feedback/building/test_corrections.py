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
STATED = {"tuned": (0.99, 0.78), "held_out": (1.0, 0.55)}
LANGUAGES = Path(__file__).with_name("correction_languages.jsonl")


@pytest.mark.parametrize("part", STATED)
def test_precision_and_recall_are_what_the_docs_state(part: str):
    rows = [json.loads(line) for line in TURNS.read_text().splitlines()]
    turns = pl.DataFrame([row for row in rows if row["part"] == part]).with_columns(told=is_correction(pl.col("text")))
    right = turns.filter("told", "correction").height
    precision = right / turns.filter("told").height
    recall = right / turns.filter("correction").height

    assert turns.height >= 40 and turns["correction"].sum() * 2 == turns.height
    assert (precision, recall) >= STATED[part] and recall >= STATED[part][1], (precision, recall)


def told(part: str) -> tuple[int, int, int]:
    """Turns of a part of the six-language sample: rightly found, wrongly found, missed."""
    rows = [json.loads(line) for line in LANGUAGES.read_text(encoding="utf-8").splitlines()]
    turns = pl.DataFrame([row for row in rows if row["part"] == part]).with_columns(told=is_correction(pl.col("turn")))
    assert turns["language"].n_unique() == 6 and turns["corrects"].sum() * 2 == turns.height
    right, wrong = turns.filter("told", "corrects").height, turns.filter("told", ~pl.col("corrects")).height
    return right, wrong, turns["corrects"].sum() - right


def test_precision_in_six_languages_is_what_the_docs_state():
    """`unseen` was written after the rules, which have not changed since; `adversarial` was written to defeat them."""
    right, wrong, missed = told("unseen")
    assert right / (right + wrong) >= 0.9 and right / (right + missed) >= 0.5
    assert told("seen") == (90, 0, 0)
    right, _, missed = told("adversarial")
    assert right / (right + missed) < 0.1  # what is only implied is not found; the docs say so


def conversation(*contents: str) -> list[tuple[str, str]]:
    return [(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]


def messages(row: dict) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in row["messages"]]


def test_the_accepted_answer_is_asked_for_in_the_final_words(make, run_build):
    history = conversation("How do I sort a list?", "Use list.sort().", "No, I meant in Java")
    built = run_build([make(1, "thumb", history, response_a="You're right, sorry! Use Collections.sort().", thumb=1)],
                      *ALL_TRAIN)  # fmt: skip
    as_liked, row = sorted(built.rows("sft"), key=lambda row: -len(row["messages"]))
    # The wrong answer is not in the row, nor the apology for it. What was liked stays as it was liked, beside it.
    assert messages(row) == [
        ("user", "How do I sort a list?\n\nI meant in Java"),
        ("assistant", "Use Collections.sort()."),
    ]
    assert (row["rules"], row["events"]) == (["in_conversation"], ["e1"])
    assert messages(as_liked) == [*history, ("assistant", "You're right, sorry! Use Collections.sort().")]
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
    rows = run_build([make(1, "thumb", history, response_a="It is 42.", thumb=1)], *ALL_TRAIN).rows("sft")
    (row,) = [row for row in rows if row["rules"] == ["in_conversation"]]
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


@pytest.mark.parametrize(
    ("first", "turn"),
    [
        ("Which city should I look up?", "No, I meant Oslo all along"),  # answers the assistant's question
        ("It rains.", "Try again with a different city, say Oslo"),  # a new request
        ("It rains.", "Actually, I need one more thing: a packing list."),
    ],
)
def test_a_row_never_drops_what_the_last_turn_asks_for(first: str, turn: str, make, run_build):
    history = conversation("How is the weather?", first, turn)
    rows = run_build([make(1, "thumb", history, response_a="Sunny in Oslo.", thumb=1)], *ALL_TRAIN).rows("sft")
    assert [messages(row) for row in rows] == [[*history, ("assistant", "Sunny in Oslo.")]]


def test_every_row_of_the_handed_turns_holds_what_was_asked(make, run_build):
    """In the way of the handed case: Q, a first answer, the turn, a second answer that was liked."""
    lines = [json.loads(line) for line in LANGUAGES.read_text(encoding="utf-8").splitlines()]
    events, turns = [], {}
    for number, line in enumerate(lines):
        question, second = f"What is the answer to question {number} of my list?", f"The better one is number {number}."
        history = conversation(question, f"The answer is word{number}.", line["turn"])
        events.append(make(number, "thumb", history, response_a=second, thumb=1))
        turns[second] = (history, line)
    rows = run_build(events, *ALL_TRAIN, "clean.near_duplicates=false").rows("sft")
    kept = {row["messages"][-1]["content"] for row in rows if len(row["messages"]) == 4}
    assert kept == set(turns)  # the liked conversation is always there
    found = [turns[row["messages"][-1]["content"]][1] for row in rows if row["rules"] == ["in_conversation"]]
    wrong = [line["turn"] for line in found if not line["corrects"] and line["part"] != "adversarial"]
    assert len(found) > 90 and len(wrong) <= 1, wrong


def test_what_was_liked_is_not_rejected_by_what_was_found(make, run_build):
    start = conversation("Capital of Australia?", "Canberra.")
    corrected = [*start, ("user", "That's wrong."), ("assistant", "Sydney."), ("user", "Thanks! And of Peru?")]
    talk = {"conversation_id": "c", "user_id": "u"}
    events = [
        make(1, "thumb", "Capital of Australia?", response_a="Canberra.", thumb=1, **talk),
        make(2, "thumb", corrected, response_a="Lima.", thumb=-1, **talk),
    ]
    built = run_build(events, *ALL_TRAIN, "pairs.in_conversation=true")
    assert built.rows("pairs") == []
    assert [row["messages"][-1]["content"] for row in built.rows("sft")] == ["Canberra."]


LONG = "The Danube rises in the Black Forest, runs through ten countries and ends in the Black Sea after 2,850 km."


@pytest.mark.parametrize(
    ("later", "thumb"),
    [
        (LONG[:60], -1),  # cut by the app
        ("The Danube: a river.", -1),  # summed up
        (LONG[:70] + " [...]", None),
        ("Something else about rivers altogether, which nobody complained about at any length here.", None),
        (LONG.replace("2,850", "2,851"), 1),  # liked as it was
    ],
)
def test_a_history_sent_again_otherwise_is_no_edit(later: str, thumb: int | None, make, run_build):
    kind = {"kind": "thumb", "thumb": thumb} if thumb else {"kind": "rating", "rating": 0.5}
    talk = {"conversation_id": "c", "user_id": "u"}
    follow = conversation("Name a river.", later, "And a lake?")
    first = make(1, "thumb", "Name a river.", response_a=LONG, **talk) | kind
    built = run_build([first, make(2, "thumb", follow, response_a="Balaton", thumb=-1, **talk)], *ALL_TRAIN,
                      "pairs.in_conversation=true")  # fmt: skip
    assert built.rows("pairs") == []
    assert [row["messages"][-1]["content"] for row in built.rows("sft")] == ([LONG] if thumb == 1 else [])


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
