"""Exports of annotation tools in their other shapes: Argilla 1, Label Studio's short forms."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from raylign.feedback.importers import ImportResult, read_log

RANKING = [{"rank": 2, "value": "reply-1"}, {"rank": 1, "value": "reply-2"}, {"rank": 2, "value": "reply-3"}]
REPLIES = {"prompt": "What is tea?", "reply_1": "BAD 1", "reply_2": "GOOD", "reply_3": "BAD 3"}


def read(folder: Path, rows: Sequence[object]) -> ImportResult:
    (folder / "log.json").write_text(json.dumps(rows))
    return read_log([folder / "log.json"], user_salt="salt")


def pushed(responses: object) -> dict[str, object]:
    """A row of an Argilla 1 data set on the hub."""
    return REPLIES | {"ranking": responses, "ranking-suggestion": None, "ranking-suggestion-metadata": None,
                      "external_id": None, "metadata": "{}"}  # fmt: skip


RESPONSES = [
    {"user_id": "u1", "value": RANKING, "status": "submitted"},
    {"user_id": "u2", "value": RANKING, "status": "discarded"},
]
SHAPES = {
    "list of responses": pushed(RESPONSES),
    "columns of responses": pushed({name: [one[name] for one in RESPONSES] for name in RESPONSES[0]}),
    "records": {"fields": REPLIES, "external_id": "r7", "responses": [
        {"user_id": one["user_id"], "status": one["status"], "values": {"ranking": {"value": one["value"]}}}
        for one in RESPONSES
    ]},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_argilla_1_ranks_count_from_the_best_and_equal_ranks_are_no_pair(tmp_path: Path, shape: str):
    found = read(tmp_path, [SHAPES[shape]])
    assert found.format == "argilla"
    assert found.events.select("response_a", "response_b", "choice").rows() == [("GOOD", "BAD 1", "a")]
    assert found.events["annotator_hash"][0] not in (None, "u1")
    assert ["discarded" in reason for reason in found.quarantined["reason"]] == [True]


def test_a_ranking_that_ranks_nothing_is_put_aside(tmp_path: Path):
    ties = [{"user_id": "u1", "value": [one | {"rank": 1} for one in RANKING], "status": "submitted"}]
    found = read(tmp_path, [pushed(ties)])
    assert found.events.height == 0 and "different rank" in found.quarantined["reason"][0]


def annotation(number: int, picked: object, **more: object) -> dict[str, object]:
    good, bad = ("answer1", "answer2") if number % 2 else ("answer2", "answer1")
    return {"id": number, "prompt": f"Question {number}?", good: f"GOOD {number}", bad: f"BAD {number}",
            "comparison": picked, "annotator": 7, "annotation_id": 100 + number, "created_at": "2026-03-01T12:00:00Z",
            "updated_at": "2026-03-01T12:00:01Z", "lead_time": 12.5} | more  # fmt: skip


def test_label_studios_short_json_and_csv_are_the_same(tmp_path: Path):
    rows = [annotation(1, "left"), annotation(2, "right"), annotation(3, ["left"]), annotation(4, "unsure")]
    short = read(tmp_path, rows)
    assert short.format == "label_studio_min"
    preferred = [
        row["response_a" if row["choice"] == "a" else "response_b"] for row in short.events.iter_rows(named=True)
    ]
    assert preferred == ["GOOD 1", "GOOD 2", "GOOD 3"]
    assert short.events["seconds_taken"].to_list() == [12.5] * 3 and short.quarantined.height == 1
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted(rows[0]))
        writer.writeheader()
        writer.writerows(
            row | {"comparison": json.dumps(row["comparison"]) if row["id"] == 3 else row["comparison"]} for row in rows
        )
    table = read_log([tmp_path / "log.csv"], user_salt="salt")
    assert table.events.drop("source_row").equals(short.events.drop("source_row"))


def test_two_columns_that_name_a_side_are_not_guessed_between(tmp_path: Path):
    found = read(tmp_path, [annotation(1, "left", politeness="right")])
    assert found.events.height == 0 and "2 columns could say" in found.quarantined["reason"][0]
