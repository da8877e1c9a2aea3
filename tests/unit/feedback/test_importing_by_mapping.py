"""One's own columns by a mapping file; what nobody knows is refused with a mapping that reads it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from raylign.conf.errors import DataError
from raylign.feedback.events import hash_user
from raylign.feedback.importers import ImportResult, read_log

MAPPING = """
source: our-app
fields:
  event_id: vote_id
  prompt: request.messages
  response_a: answers.0.text
  response_b: answers.1.text
  choice: {column: winner, values: {left: a, right: b, tie: both_good}}
  strength: {column: sure, scale: [0, 10]}
  user_id: user.mail
  shown_at: shown
  time: clicked
  surface: {value: web}
  consent: ok
  reasons: why
  finish_reason_b: answers.1.ended
"""
ROW = {
    "vote_id": 7,
    "request": {"messages": [{"role": "user", "content": "What is tea?"}]},
    "answers": [{"text": "A drink."}, {"text": "Leaves.", "ended": "max_tokens"}],
    "winner": "right",
    "sure": 5,
    "user": {"mail": "ann@example.org"},
    "shown": "2026-03-01T12:00:00Z",
    "clicked": 1772366407000,
    "ok": "yes",
    "why": "short, clear",
}


def read(tmp_path: Path, *rows: object, mapping: str = MAPPING) -> ImportResult:
    (tmp_path / "mapping.yaml").write_text(mapping)
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_log([tmp_path / "votes.jsonl"], mapping=tmp_path / "mapping.yaml", user_salt="pepper")


def test_a_mapped_row_arrives_value_by_value(tmp_path: Path):
    result = read(tmp_path, ROW)

    assert {k: v for k, v in result.events.row(0, named=True).items() if v is not None} == {
        "event_id": "our-app:7",
        "kind": "side_by_side",
        "source": "our-app",
        "source_row": 1,
        "prompt": [{"role": "user", "content": "What is tea?"}],
        "response_a": "A drink.",
        "response_b": "Leaves.",
        "finish_reason_b": "length",
        "user_hash": hash_user("ann@example.org", "pepper"),
        "time": datetime(2026, 3, 1, 12, 0, 7, tzinfo=UTC),
        "seconds_taken": 7.0,
        "choice": "b",
        "strength": 0.5,
        "reasons": ["short", "clear"],
        "surface": "web",
        "consent": True,
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"winner": "middle"}, "`winner` is `middle`, which the mapping gives no meaning"),
        ({"winner": None}, "holds no judgement"),
        ({"clicked": "2026-03-01T11:00:00Z"}, "it ends before it starts"),
        ({"clicked": 12}, "before 2015"),
        ({"sure": 11}, "its scale is 0 to 10"),
        ({"answers": [{"text": "A drink."}]}, "a side-by-side without a second answer"),
        ({"request": {}}, "`prompt` is NoneType"),
        ({"ok": "perhaps"}, "`consent` is `perhaps`"),
        ({"vote_id": None}, "`event_id` is empty"),
        ({"user": {"mail": ["ann@example.org"]}}, "id of a person"),
    ],
)
def test_a_bad_value_is_put_aside_with_its_reason(tmp_path: Path, changes: dict[str, object], reason: str):
    result = read(tmp_path, ROW, ROW | {"vote_id": 8} | changes)

    assert result.events.height == 1
    ((line, said),) = result.quarantined.select("line", "reason").rows()
    assert line == 2 and reason in said


def test_all_that_is_wrong_with_a_mapping_is_said_at_once(tmp_path: Path):
    mapping = """
fields:
  promt: question
  response_a: {column: answer, value: x}
  rating: {column: stars, scale: [5, 1]}
extra: 1
"""
    with pytest.raises(DataError) as refused:
        read(tmp_path, ROW, mapping=mapping)
    said = "\n".join(refused.value.problems)
    for part in (
        "unknown key `extra`",
        "did you mean prompt?",
        "either a column or a value",
        "`scale`",
        "fields.prompt is missing",
    ):
        assert part in said


def test_an_unknown_log_is_shown_and_its_suggested_mapping_reads_it(tmp_path: Path):
    rows = [
        {"vote": i, "question": f"What is {i}?", "reply_1": f"It is {i}.", "reply_2": "A number.",
         "picked": ("left", "right")[i % 2], "user_email": "ann@example.org", "when": "2026-03-01T12:00:00Z"}
        for i in range(4)
    ]  # fmt: skip
    rows = [{k.replace("picked", "preferred"): v for k, v in row.items()} for row in rows]
    log = tmp_path / "votes.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as refused:
        read_log([log], user_salt="pepper")

    said = str(refused.value)
    assert refused.value.exit_code == 2
    assert "reply_2: A number." in said and "native, open_webui" in said
    assert "ann@example.org" not in said
    suggested = said[re.search("^source:", said, re.MULTILINE).start() :]  # type: ignore[union-attr]
    result = read(tmp_path, *rows, mapping=suggested)
    assert result.quarantined.height == 0
    assert result.events["choice"].to_list() == ["a", "b", "a", "b"]
    assert result.events["response_b"].to_list() == ["A number."] * 4
    assert result.events["prompt"].to_list()[3] == [{"role": "user", "content": "What is 3?"}]


def test_files_of_two_formats_are_refused_together(tmp_path: Path):
    native = {
        "event_id": "1",
        "kind": "thumb",
        "prompt": [{"role": "user", "content": "q"}],
        "response_a": "a",
        "thumb": 1,
    }
    pair = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    (tmp_path / "a.jsonl").write_text(json.dumps(native))
    (tmp_path / "b.jsonl").write_text(json.dumps(pair))
    with pytest.raises(DataError, match=r"a\.jsonl is native; .*b\.jsonl is hh_rlhf"):
        read_log([tmp_path], user_salt="pepper")
