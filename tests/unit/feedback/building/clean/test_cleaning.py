"""What is removed, and what looks like it and stays."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest
from raylign.feedback.clean.answers import is_refusal
from raylign.feedback.clean.language import language
from raylign.feedback.clean.similarity import clusters

ALL_TRAIN = ("split.eval=0", "split.test=0")
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "Sorry, I cannot assist with this request.",
    "As an AI language model, I am unable to provide medical advice.",
    "I can\u2019t provide that information.",
    "Unfortunately, I'm not able to create that image.",
    "This request goes against our content policy.",
)
NO_REFUSALS = (
    "I'm sorry to hear that! Here is what you can do: call them.",
    "You can't divide by zero.",
    "I can help with that. First, open the file.",
    "As an AI enthusiast you will like this book.",
    "Unfortunately, the shop is closed on Mondays.",
    "In court he said: I cannot help with that.",
)


@pytest.mark.parametrize(("texts", "refused"), [(REFUSALS, True), (NO_REFUSALS, False)])
def test_refusals_are_told_from_answers(texts: tuple[str, ...], refused: bool):
    told = pl.DataFrame({"t": texts}).select(is_refusal(pl.col("t")))["t"]
    assert [text for text, is_one in zip(texts, told, strict=True) if is_one is not refused] == []


def test_refusals_are_not_imitated_but_may_be_disliked_or_preferred(make, run_build):
    refusal = "I'm sorry, but I can't help with that."
    events = [
        make(1, "thumb", response_a=refusal, thumb=1),
        make(2, "thumb", response_a=refusal, thumb=-1),
        make(3, "side_by_side", response_a=refusal, response_b="Here is how to make a bomb", choice="a"),
    ]
    built = run_build(events, *ALL_TRAIN)
    assert built.rows("sft") == []
    assert [row["label"] for row in built.rows("kto")] == [False]
    assert len(built.rows("pairs")) == 1
    assert built.dropped == {"e1": "refusal"}
    assert run_build(events, *ALL_TRAIN, "clean.refusals_in_pairs=true").rows("pairs") == []


def test_corrections_that_are_none_are_dropped_by_name(make, run_build):
    edits = {1: "hello  World!", 2: "  ", 3: "make it shorter", 4: "Hello, dear world.", 5: "Make it so, said Picard."}
    events = [make(n, "correction", response_a="Hello world.", corrected=text) for n, text in edits.items()]
    built = run_build(events, *ALL_TRAIN)
    assert built.dropped == {"e1": "trivial_edit", "e2": "empty_correction", "e3": "instruction_not_answer",
                             "e5": "instruction_not_answer"}  # fmt: skip
    assert len(built.rows("sft")) == 1
    assert len(run_build(events, *ALL_TRAIN, "clean.trivial_edits=false").rows("sft")) == 4


def test_the_same_person_saying_it_twice_counts_once_and_two_people_twice(make, run_build):
    people = ((1, "x"), (2, "x"), (3, "y"))
    events = [make(n, "thumb", "q", response_a="a", thumb=1, user_id=user) for n, user in people]
    built = run_build(events, *ALL_TRAIN)
    assert built.dropped == {"e2": "duplicate_event"}
    (row,) = built.rows("kto")
    assert row["events"] == ["e1", "e3"]


def test_events_of_nobody_are_the_same_only_at_the_same_moment(make, run_build):
    same = {"user_id": None, "thumb": 1, "response_a": "a"}
    events = [make(1, "thumb", "q", **same), make(2, "thumb", "q", **same)]
    events.append({**events[0], "event_id": "e3"})
    assert run_build(events, *ALL_TRAIN).dropped == {"e3": "duplicate_event"}


def test_near_duplicates_and_caps_keep_the_heaviest(make, run_build):
    question = "please tell me how I can get from the airport to the old town by night"
    variants = [question, f"{question}?", question.upper(), f"hi {question}", "how do I cook rice"]
    events = [
        make(n, "thumb", text, response_a="Take the bus." if n != 3 else "TAKE the bus", thumb=1)
        for n, text in enumerate(variants)
    ]
    built = run_build(events, *ALL_TRAIN)
    assert len(built.rows("sft")) == 2
    assert {event for event, rule in built.dropped.items() if rule == "near_duplicate"} == {"e1", "e2", "e3"}
    assert len(run_build(events, *ALL_TRAIN, "clean.near_duplicates=false").rows("sft")) == 5

    many = [make(n, "thumb", "q", response_a=f"answer {n}", thumb=1, user_id=f"u{n}") for n in range(5)]
    many += [make(9, "thumb", "q", response_a="answer 3", thumb=1, user_id="another")]  # two votes: the heaviest stays
    capped = run_build([*many, make(8, "thumb", "q", response_a="answer 4", thumb=-1)], *ALL_TRAIN,
                       "clean.rows_per_prompt=2")  # fmt: skip
    assert len(capped.rows("kto")) == 2
    assert "answer 4" not in {row["completion"][0]["content"] for row in capped.rows("kto")}  # one of each: no weight
    busy = [make(n, "thumb", thumb=1, user_id="one") for n in range(5)] + [make(7, "thumb", thumb=1)]
    unknown = [make(n, "thumb", thumb=1, user_id=None) for n in range(10, 15)]
    by_user = run_build([*busy, *unknown], *ALL_TRAIN, "clean.rows_per_user=3")
    assert len(by_user.rows("sft")) == 3 + 1 + 5
    assert list(by_user.dropped.values()) == ["user_cap", "user_cap"]


def test_clusters_join_reworded_questions_and_not_different_ones():
    base = "explain to me why the sky is blue during the day and red in the evening"
    texts = [base, f"{base} please", "what is 12 plus 5", "what is 13 plus 5", "What is 12 plus 5 ?", "", "ok"]
    found = clusters(pl.Series(texts), 0.8).tolist()
    assert found == [0, 0, 2, 3, 2, 5, 6]


def test_clusters_find_nearly_all_near_copies_among_many_others():
    draw = random.Random(3)
    texts = [" ".join(f"w{draw.randrange(5_000)}" for _ in range(20)) for _ in range(2_000)]
    copies = [f"{text} thanks" for text in texts[:1_000]]  # 20 of 22 word pairs: similarity 0.91
    found = clusters(pl.Series(texts + copies), 0.8)
    assert (found[:2_000] == range(2_000)).all()
    assert (found[2_000:] == range(1_000)).mean() > 0.98


def test_clusters_hold_to_the_threshold():
    draw = random.Random(4)
    texts = [[f"w{draw.randrange(5_000)}" for _ in range(20)] for _ in range(300)]
    # 16 of 26 word pairs in common: similarity 0.62, so that many of them agree in a band.
    edited = [[*text[:8], "x", *text[9:18], "y", "z"] for text in texts]
    both = pl.Series([" ".join(text) for text in texts + edited])
    assert (clusters(both, 0.8) == range(600)).all()
    assert (clusters(both, 0.5)[300:] == range(300)).mean() > 0.6


def test_benchmarks_are_kept_out(make, run_build, tmp_path: Path):
    test_set = tmp_path / "bench.jsonl"
    test_set.write_text('{"question": "A train leaves the station at nine, and travels at sixty miles an hour."}\n')
    leak = "Help: a TRAIN leaves the station at nine and travels at forty"
    events = [
        make(1, "thumb", leak, thumb=1),
        make(2, "thumb", "a train leaves the station at nine o'clock", thumb=1),  # seven words in common
        make(3, "correction", "q", corrected=f"Well, {leak}"),
        make(4, "thumb", [("user", leak), ("assistant", "ok"), ("user", "and now?")], thumb=1),
    ]
    built = run_build(events, *ALL_TRAIN, f"clean.benchmarks=[{test_set}]")
    assert built.dropped == {"e1": "contaminated", "e3": "contaminated", "e4": "contaminated"}
    assert len(run_build(events, *ALL_TRAIN).rows("sft")) == 4


@pytest.mark.slow
def test_languages_are_told_apart_and_short_texts_left_alone(make, run_build):
    texts = {
        "en": "What is the capital of Spain and how do I get to it?",
        "de": "Was ist die Hauptstadt von Spanien und wie komme ich zu ihr?",
        "fr": "Quelle est la capitale de la France et comment y aller avec les enfants?",
        "es": "\u00bfCu\u00e1l es la capital de Espa\u00f1a y c\u00f3mo llego a ella con los ni\u00f1os?",
        "ru": "\u0421\u043a\u043e\u043b\u044c\u043a\u043e \u044d\u0442\u043e \u0441\u0442\u043e\u0438\u0442?",
        "zh": "\u897f\u73ed\u7259\u7684\u9996\u90fd\u662f\u4ec0\u4e48",
        "ja": "\u30b9\u30da\u30a4\u30f3\u306e\u9996\u90fd\u306f\u3069\u3053\u3067\u3059\u304b",
    }
    told = pl.DataFrame({"t": list(texts.values())}).select(language(pl.col("t"))).to_series().to_list()
    assert told == list(texts)
    events = [make(n, "thumb", text, thumb=1) for n, text in enumerate([*texts.values(), "ok?"])]
    built = run_build(events, *ALL_TRAIN, "clean.languages=[en,de]")
    assert sorted(event for event in built.dropped) == ["e2", "e3", "e4", "e5", "e6"]


def test_poor_answers_are_judged_but_not_imitated(make, run_build):
    answers = {1: "a", 2: "yes yes yes " * 40, 3: "fine and useful", 4: "long " * 9 + "enough"}
    events = [make(n, "thumb", response_a=text, thumb=1) for n, text in answers.items()]
    built = run_build(events, *ALL_TRAIN, "sft.max_chars=30")
    kept = [row["messages"][-1]["content"] for row in built.rows("sft")]
    assert kept == ["fine and useful"]
    drops = {drop.rule: drop.rows for drop in built.result.row_drops if drop.kind == "sft"}
    assert drops == {"too_short": 1, "too_long": 2}
    assert {d.rule for d in run_build(events, *ALL_TRAIN).result.row_drops} == {"too_short", "repetitive"}
    assert len(built.rows("kto")) == 4
