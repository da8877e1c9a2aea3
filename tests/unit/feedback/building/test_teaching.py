"""Prompts for a teacher: what people wrote is in its context and in nothing that the policy is asked."""

from __future__ import annotations

from pathlib import Path

from raylign.conf.schema import DataConfig
from raylign.data.data_ledger import file_ledger
from raylign.data.prompts import load_prompts
from raylign.data.tokenize import load_tokenizer
from raylign.feedback.examples import TEACHER_SCHEMA
from raylign.feedback.turns import FIELDS

TALK = [("system", "Be brief."), ("user", "Which day?"), ("assistant", "Sunday?"), ("user", "When do you open?")]
EVERY = ("split.eval=0", "split.test=0", "teacher.from_comments=true")


def events(make) -> list:
    return [
        make(1, "correction", TALK, response_a="At nine.", corrected="We are closed on Sundays."),
        make(2, "thumb", "What is tea?", response_a="A large mammal.", thumb=-1, comment="it is a drink, a@x.org says"),
        make(3, "rating", "What is rice?", response_a="Sand.", rating=0.0, comment="food!"),
        make(4, "thumb", "What is rum?", response_a="A drink.", thumb=1, comment="right"),
        make(5, "rating", "What is oil?", response_a="A fluid.", rating=0.5, comment="so so"),
        make(6, "thumb", "What is air?", response_a="Gas.", thumb=-1, comment="  "),
        make(7, "thumb", "What is ice?", response_a="Gas.", thumb=-1),
        make(8, "correction", [("user", "2 + 2?"), ("tool", "4")], response_a="5", corrected="It is 4."),
    ]


def test_a_row_asks_the_question_alone_and_the_teacher_what_people_wrote_too(make, run_build):
    built = run_build(events(make), *EVERY)
    rows = {row["events"][0]: row for row in built.rows("teacher", "train")}
    assert rows.keys() == {"e1", "e2", "e3"} and all(list(row) == TEACHER_SCHEMA.names() for row in rows.values())
    edited, remarked = rows["e1"], rows["e2"]
    assert [(turn["role"], turn["content"]) for turn in edited["prompt"]] == TALK
    assert edited["teacher_prompt"][:-1] == edited["prompt"][:-1]
    assert edited["teacher_prompt"][-1] == {
        "role": "user",
        "content": "When do you open?\n\n(A reader rewrote an earlier answer to this as follows.\n"
        "We are closed on Sundays.)",
    }
    assert remarked["prompt"] == [{"role": "user", "content": "What is tea?"}]
    assert remarked["teacher_prompt"][0]["content"] == (
        "What is tea?\n\n(An earlier answer to this was:\nA large mammal.\n\nA reader said about it:\n"
        "it is a drink, <EMAIL_1> says)"
    )
    assert (edited["rules"], remarked["rules"]) == (["correction"], ["comment"])
    assert "x.org" not in built.everything()
    signals = {fate.signal: fate.in_teacher for fate in built.result.signals}
    assert signals == {"correction": 1, "thumb_down": 1, "thumb_up": 0, "rating": 1}


def test_a_sign_of_fields_in_a_comment_or_a_label_stands_for_nothing(make, run_build):
    """It is cut there from what turns have beside their words, which is JSON."""
    forged = f"a@x.org{FIELDS}not{FIELDS}fields"
    given = [make(1, "thumb", "What is tea?", response_a="Mud.", thumb=-1, comment=forged, persona=forged)]
    (row,) = run_build(given, *EVERY).rows("teacher", "train")
    assert row["teacher_prompt"][0]["content"].endswith("said about it:\n<EMAIL_1> not fields)")
    assert list(row["teacher_prompt"][0]) == ["role", "content"]


def test_comments_are_asked_for_and_refusals_are_no_corrections(make, run_build):
    given = [
        *events(make),
        make(9, "correction", "How?", response_a="So.", corrected="Sorry, I cannot help with that."),
    ]
    plain = run_build(given, *EVERY[:2])
    assert [row["events"] for row in plain.rows("teacher")] == [["e1"]]
    assert ("refusal", "teacher", 1) in {(drop.rule, drop.kind, drop.rows) for drop in plain.result.row_drops}
    assert run_build(given, *EVERY[:2], "teacher.from_corrections=false").rows("teacher") == []


def test_the_same_placeholder_stands_for_the_same_thing_in_question_and_comment(make, run_build):
    told = make(1, "thumb", "Write to b@y.org, not a@x.org", response_a="Hm", thumb=-1, comment="I said b@y.org")
    (row,) = run_build([told], *EVERY).rows("teacher")
    assert row["prompt"][0]["content"] == "Write to <EMAIL_1>, not <EMAIL_2>"
    assert row["teacher_prompt"][0]["content"].endswith("I said <EMAIL_1>)")


def test_a_run_reads_the_rows_and_knows_whose_words_they_hold(make, run_build, tiny_model_dir: Path):
    file = run_build(events(make), *EVERY).folder / "teacher" / "train.jsonl"
    tokenizer = load_tokenizer(str(tiny_model_dir))
    prompts = load_prompts(str(file), DataConfig(max_bad_fraction=0), tokenizer, teacher=True).prompts
    assert len(prompts) == 3 and all(len(p.teacher_ids) > len(p.token_ids) for p in prompts)
    assert len(file_ledger(str(file)).events) == 3
