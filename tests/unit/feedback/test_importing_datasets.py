"""The public preference sets in their published shapes, read value by value."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from raylign.feedback.events import hash_user
from raylign.feedback.importers import ImportResult, read_log

TEA = [{"role": "user", "content": "What is tea?"}]
SALT = "pepper"


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def read(tmp_path: Path, rows: Sequence[object]) -> ImportResult:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_log([path], user_salt=SALT)


def known(result: ImportResult, row: int = 0) -> dict[str, object]:
    """Without the columns that are null or empty, and without ids made from content."""
    values = result.events.row(row, named=True)
    return {k: v for k, v in values.items() if v is not None and v != [] and k != "event_id"}


def test_hh_rlhf(tmp_path: Path):
    rows = [
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: What is tea?\n\nAssistant: A drink.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: What is tea?\n\nAssistant: Leaves.\n\nHot ones.",
        },
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
        {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        {"chosen": "A tale", "rejected": "\n\nHuman: a\n\nAssistant: d"},
    ]
    result = read(tmp_path, [*rows, rows[0]])

    expected = {
        "kind": "side_by_side",
        "source": "hh_rlhf",
        "source_row": 1,
        "prompt": turns("Hi", "Hello.", "What is tea?"),
        "response_a": "A drink.",
        "response_b": "Leaves.\n\nHot ones.",
        "turn": 1,
        "choice": "a",
    }
    assert known(result) == expected
    assert known(result, 1) == expected | {"source_row": 5}  # the same judgement twice is two judgements
    first, second = result.events["event_id"]
    assert second == f"{first}#2"
    assert result.quarantined["line"].to_list() == [2, 3, 4]


def test_ids_made_from_content_stay_when_the_file_grows(tmp_path: Path):
    rows = [
        {"chosen": f"\n\nHuman: q{i}\n\nAssistant: a", "rejected": f"\n\nHuman: q{i}\n\nAssistant: b"} for i in range(5)
    ]
    before = read(tmp_path, rows[:3]).events["event_id"].to_list()
    after = read(tmp_path, [rows[4], *rows]).events["event_id"].to_list()
    assert after[1:4] == before and len(set(after)) == 6


def completion(model: str, score: object, **changes: object) -> dict[str, object]:
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    return {
        "model": model,
        "principle": "helpfulness",
        "response": f"by {model}",
        "annotations": {name: {"Rating": "4", "Rationale": "fine"} for name in names},
        "critique": "x",
        "fine-grained_score": score,
        "overall_score": 10.0,
    } | changes


def test_ultrafeedback_raw_is_a_rating_for_each_answer(tmp_path: Path):
    ratings = {"helpfulness": {"Rating": "N/A"}, "honesty": {"Rating": "2"}, "truthfulness": {"Rating": 3}}
    answers = [
        completion("m1", 4.5),
        completion("m2", None, annotations=ratings),
        completion("m3", None, annotations={}, overall_score=5.5),
        completion("m4", 9),
    ]
    row = {"source": "evol_instruct", "instruction": "What is tea?", "models": [], "completions": answers}
    result = read(tmp_path, [row, row | {"completions": []}])

    assert known(result) == {
        "kind": "rating",
        "source": "ultrafeedback",
        "source_row": 1,
        "prompt": TEA,
        "response_a": "by m1",
        "model_a": "m1",
        "rating": 0.875,
        "topic": "evol_instruct",
    }
    assert result.events["rating"].to_list() == [0.875, 0.375, 0.5]
    assert result.quarantined["reason"].to_list() == [
        "`fine-grained_score` is 9; its scale is 1 to 5",
        "no completions",
    ]
    assert (result.rows_in, result.rows_by_judgements, result.judgements_in) == (2, {1: 1, 4: 1}, 5)


def test_ultrafeedback_binarized(tmp_path: Path):
    row = {
        "prompt": "What is tea?",
        "prompt_id": "abc",
        "chosen": turns("What is tea?", "A drink."),
        "rejected": turns("What is tea?", "Leaves."),
        "messages": turns("What is tea?", "A drink."),
        "score_chosen": 8.5,
        "score_rejected": 4.0,
    }
    result = read(tmp_path, [row, row | {"score_rejected": 8.5}, row | {"score_rejected": 9.0}])

    assert known(result) == {
        "kind": "side_by_side",
        "source": "ultrafeedback_binarized",
        "source_row": 1,
        "prompt": TEA,
        "response_a": "A drink.",
        "response_b": "Leaves.",
        "choice": "a",
        "strength": 0.5,
    }
    assert (known(result, 1)["choice"], known(result, 1)["reasons"]) == ("skipped", ["tie"])
    assert result.quarantined["line"].to_list() == [3]


def test_helpsteer2_ratings(tmp_path: Path):
    row = {"prompt": "What is tea?", "response": "A drink.", "helpfulness": 3, "correctness": 4, "coherence": 4,
           "complexity": 1, "verbosity": 0}  # fmt: skip
    several = row | {
        "helpfulness": [4, 1],
        "correctness": [4, 2],
        "coherence": [4, 4],
        "complexity": [1],
        "verbosity": [0, 0],
    }
    chat = "Hi<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nWhat is tea?\n<extra_id_1>Assistant\n"
    result = read(tmp_path, [row, several, row | {"prompt": chat}, row | {"helpfulness": 5}])

    aspects = ["correctness=4", "coherence=4", "complexity=1", "verbosity=0"]
    common = {"kind": "rating", "source": "helpsteer2", "response_a": "A drink."}
    assert known(result) == common | {"source_row": 1, "prompt": TEA, "turn": 0, "rating": 0.75, "reasons": aspects} | {
        "score": "helpfulness"
    }
    assert result.events["rating"].to_list() == [0.75, 1.0, 0.25, 0.75]
    assert known(result, 2)["reasons"] == ["correctness=2", "coherence=4", "verbosity=0"]
    assert known(result, 3)["prompt"] == turns("Hi", "Hello.", "What is tea?")
    assert result.quarantined["reason"].to_list() == ["`helpfulness` is 5; its scale is 0 to 4"]
    assert result.rows_by_judgements == {1: 3, 2: 1}


@pytest.mark.parametrize(("preference", "choice", "strength"), [(-3, "a", 1.0), (2, "b", 2 / 3), (0, "skipped", None)])
def test_helpsteer_preferences(tmp_path: Path, preference: int, choice: str, strength: float | None):
    two = {"prompt": "What is tea?", "response_1": "A drink.", "response_2": "Leaves.",
           "preference_strength": preference, "preference_statement": "Clear."}  # fmt: skip
    three = {"domain": "stem", "language": "english", "context": TEA, "response1": "A drink.", "response2": "Leaves.",
             "overall_preference": preference, "individual_preference": [{"score": preference}]}  # fmt: skip
    expected = {
        "kind": "side_by_side",
        "source_row": 1,
        "prompt": TEA,
        "response_a": "A drink.",
        "response_b": "Leaves.",
        "turn": 0,
        "choice": choice,
    } | ({"strength": strength} if strength else {"reasons": ["tie"]})

    result = read(tmp_path, [two])
    assert known(result) == expected | {"source": "helpsteer2_preference", "comment": "Clear."}
    result = read(tmp_path, [three])
    assert known(result) == expected | {"source": "helpsteer3", "topic": "stem", "locale": "en"}


def battle(**changes: object) -> dict[str, object]:
    return {
        "question_id": "q1",
        "model_a": "m1",
        "model_b": "m2",
        "winner": "model_b",
        "judge_hash": "abcdef",
        "conversation_a": turns("What is tea?", "A drink."),
        "conversation_b": turns("What is tea?", "Leaves."),
        "turn": 1,
        "anony": True,
        "language": "English",
        "tstamp": 1718000000.25,
        "conv_metadata": {},
        "is_code": False,
        "is_refusal": False,
        "dedup_tag": {},
        "category_tag": {"math_v0.1": {"math": True}},
    } | changes


def test_arena_100k(tmp_path: Path):
    longer = {"conversation_a": turns("q", "x", "q2", "y"), "conversation_b": turns("q", "z", "q2", "w")}
    rows = [
        battle(),
        battle(question_id="q2", winner="tie"),
        battle(question_id="q3", winner="tie (bothbad)", is_code=True),
        battle(question_id="q4", winner="both"),
        battle(question_id="q5", **longer),
    ]
    result = read(tmp_path, rows)

    assert known(result) == {
        "kind": "side_by_side",
        "source": "arena",
        "source_row": 1,
        "prompt": TEA,
        "response_a": "A drink.",
        "response_b": "Leaves.",
        "turn": 0,
        "user_hash": hash_user("abcdef", SALT),
        "time": datetime(2024, 6, 10, 6, 13, 20, 250_000, tzinfo=UTC),
        "model_a": "m1",
        "model_b": "m2",
        "choice": "b",
        "locale": "en",
        "topic": "math",
    }
    assert result.events["choice"].to_list() == ["b", "both_good", "both_bad"]
    assert result.events["event_id"].to_list() == ["arena:q1", "arena:q2", "arena:q3"]
    assert [("unknown choice `both`" in r, "part before" in r) for r in result.quarantined["reason"]] == [
        (True, False),
        (False, True),
    ]


def test_arena_55k_table(tmp_path: Path):
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        file.write("id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n")
        cells = ['["What is tea?"]', '["A \\"drink\\".\\nHot."]', '["Leaves."]']
        table.writerow([30192, "m1", "m2", *cells, 1, 0, 0])
        table.writerow([30193, "m1", "m2", *cells, 0, 0, 1])
        table.writerow([30194, "m1", "m2", '["q1", "q2"]', '["a", "b"]', '["c", "d"]', 0, 1, 0])
        table.writerow([30195, "m1", "m2", *cells, 1, 1, 0])
        table.writerow([30196, "m1", "m2", cells[0], "[null]", cells[2], 1, 0, 0])
        table.writerow([30197, "m1", "m2", '["\\ud83d"]', *cells[1:], 1, 0, 0])
    result = read_log([tmp_path / "train.csv"], user_salt=SALT)

    assert result.format == "arena_table"
    assert known(result) == {
        "kind": "side_by_side",
        "source": "arena_table",
        "source_row": 2,
        "prompt": TEA,
        "response_a": 'A "drink".\nHot.',
        "response_b": "Leaves.",
        "turn": 0,
        "model_a": "m1",
        "model_b": "m2",
        "choice": "a",
    }
    assert (known(result, 1)["choice"], known(result, 1)["reasons"]) == ("skipped", ["tie"])
    assert result.quarantined["line"].to_list() == [4, 5, 6, 7]
