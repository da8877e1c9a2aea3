"""Two exports that overlap, in every format: no judgement counts twice, and the latest word is the one that counts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from raylign.feedback.importers import read_log
from raylign.feedback.importers.outcome import ImportResult
from raylign.feedback.importers.sniff import FORMATS

from .test_import_fuzz import COMPANIONS, GOOD

Row = dict[str, object]
KEYS = ("event_id", "id", "question_id", "prompt_id", "message_tree_id", "utterance_id", "request_id", "run_id",
        "traceId", "interaction_id", "conversation_id", "feedback_id", "annotation_id", "post_id")  # fmt: skip
MAPPING = """
fields:
  {id}
  prompt: q
  response_a: a
  thumb: t
  user_id: u
  time: when
  updated: changed
"""


def varied(value: object, number: int, *, top: bool = True) -> object:
    """The same row about another question, with ids of its own."""
    if isinstance(value, dict):
        own = {key for key in value if (top and key in KEYS) or (key == "message_id" and "replies" in value)}
        ids = {
            key: value[key] * 1000 + number if isinstance(value[key], int) else f"{value[key]}{number}" for key in own
        }
        return {key: ids[key] if key in own else varied(given, number, top=False) for key, given in value.items()}
    if isinstance(value, list):
        return [varied(given, number, top=False) for given in value]
    if value in ("q", '["q"]'):
        return f"{value}".replace("q", f"q{number}")
    return value.replace("Human: q", f"Human: q{number}") if isinstance(value, str) else value


def read(folder: Path, exports: Sequence[Sequence[Row]], companion: Sequence[Row] = (), **how: object) -> ImportResult:
    logs = []
    for number, rows in enumerate(exports):
        logs.append(folder / f"{len(list(folder.iterdir()))}-{number}.jsonl")
        logs[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    beside = None
    if companion:
        beside = folder / "companion.json"
        beside.write_text(json.dumps(list(companion)))
    return read_log(logs, companion=beside, user_salt="s", **how)  # type: ignore[arg-type]


def told(result: ImportResult) -> pl.DataFrame:
    return result.events.drop("source_row").sort("event_id")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(format.name for format in FORMATS))
def test_no_judgement_counts_twice(tmp_path: Path, name: str):
    rows = [varied(GOOD[name], number) for number in range(4)]
    if name == "prism":  # a judgement stands in the rows of all its answers
        shown = GOOD[name] | {"utterance_id": "v", "model_response": "b", "if_chosen": False}
        rows = [[varied(row, number) for row in (GOOD[name], shown)] for number in range(4)]
    if name == "langsmith":
        rows = [row | {"key": "thumbs"} for row in rows]
    if name == "langfuse":
        rows = [row | {"name": "thumbs"} for row in rows]
    beside = [varied(COMPANIONS[name], number) for number in range(4)] if name in COMPANIONS else []

    def exported(*parts: list) -> ImportResult:
        files = [list(itertools.chain(*part)) if name == "prism" else part for part in parts]
        return read(tmp_path, files, beside, format=name)

    whole = exported(rows)
    assert whole.events.height >= 4 and whole.quarantined.height == 0
    for cuts in ((rows[:3], rows[1:]), (rows, rows), (rows[2:], rows[:3]), (rows[:1], rows[1:3], rows[2:])):
        merged = exported(*cuts)
        assert told(merged).equals(told(whole))
        assert merged.quarantined.height == merged.judgements_in - whole.events.height
        assert merged.quarantined["reason"].str.contains("already").all()


def test_equal_rows_of_one_file_are_as_many_after_merging(tmp_path: Path):
    row = GOOD["hh_rlhf"]
    other = varied(row, 7)
    merged = read(tmp_path, [[row, row, other], [row, row, row], [other]])
    assert sorted(merged.events["event_id"].str.contains("#").to_list()) == [False, False, True, True]
    assert merged.events["event_id"].n_unique() == 4
    assert told(merged).equals(told(read(tmp_path, [[row, row, row, other]])))


CHANGES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "native": ({"thumb": 1}, {"thumb": -1}),
    "open_webui": ({"data": {"rating": 1}}, {"data": {"rating": -1}, "updated_at": 1772400000}),
    "label_studio": ({}, {"annotations": [
        {"id": 1, "completed_by": 3, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-05T00:00:00Z",
         "result": [{"type": "pairwise", "value": {"selected": "right"}}]}]}),
    "label_studio_min": ({}, {"comparison": "right", "updated_at": "2026-01-05T00:00:00Z"}),
    "argilla": ({}, {"responses": {"better": [{"value": "response2", "user_id": "u", "status": "submitted"}]}}),
    "langsmith": ({"key": "thumbs"}, {"key": "thumbs", "score": 0, "modified_at": "2026-01-05T00:00:00Z"}),
    "langfuse": ({"name": "thumbs"}, {"name": "thumbs", "value": 0, "updatedAt": "2026-01-05T00:00:00Z"}),
    "openai_log": ({"created_at": "2026-01-01T00:00:00Z"}, {"created_at": "2026-01-01T00:00:00Z", "rating": "down"}),
    "arena": ({}, {"winner": "model_b"}),
    "mt_bench": ({}, {"winner": "model_b"}),
    "arena_table": ({}, {"winner_model_a": 0, "winner_model_b": 1}),
}  # fmt: skip
"""What a tool's next export says of a judgement that was changed, for tools whose people change theirs."""


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_the_latest_word_counts(tmp_path: Path, name: str):
    was, now = (GOOD[name] | change for change in CHANGES[name])
    beside = [COMPANIONS[name]] if name in COMPANIONS else []
    other = varied(was, 5)
    beside += [varied(row, 5) for row in beside]
    before, alone, others = (told(read(tmp_path, [[row]], beside, format=name)) for row in (was, now, other))
    assert not alone.equals(before)
    dated = {"updated_at", "updatedAt", "modified_at", "annotations"} & set(now)
    for exports in ([[was, other], [other, now]], [[was], [now, other]], *([[[now], [was, other]]] if dated else ())):
        merged = told(read(tmp_path, exports, beside, format=name))
        assert merged.equals(pl.concat([alone, others]).sort("event_id"))


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("dated", [True, False])
def test_mapped_columns_with_and_without_ids(tmp_path: Path, ids: bool, dated: bool):
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(MAPPING.format(id="event_id: key" if ids else "locale: l"))
    row = {"key": "k1", "q": "q", "a": "a", "t": 1, "u": "u", "when": "2026-01-01T00:00:00Z", "l": "en"}
    changed = row | {"t": -1} | ({"changed": "2026-01-02T00:00:00Z"} if dated else {})
    other = row | {"key": "k2", "u": "v"}  # another person says what the first one said
    exports = [row, other], [other, changed]
    for order in itertools.permutations(exports) if dated else [exports]:
        events = read(tmp_path, order, mapping=mapping).events
        assert sorted(events.select("thumb").to_series()) == [-1, 1]
    month = read(tmp_path, [[row], [other]], mapping=mapping)
    assert month.events.height == 2 and month.quarantined.height == 0


def ranked(*names: str) -> list[dict[str, object]]:
    return [{"value": f"response{name}", "rank": place} for place, name in enumerate(names, start=1)]


def test_a_changed_ranking_takes_all_its_pairs_along(tmp_path: Path):
    fields = {"prompt": "q", **{f"response{n}": f"answer {n}" for n in range(1, 4)}}

    def record(ranking: list[dict[str, object]]) -> Row:
        return {"id": "r", "fields": fields, "responses": {"order": [{"value": ranking, "user_id": "u"}]}}

    long, short = ranked("1", "2", "3"), [{"value": "response3", "rank": 1}, {"value": "response1", "rank": 2}]
    for first, last in ((long, short), (short, long), (long, ranked("3", "2", "1"))):
        merged = read(tmp_path, [[record(first)], [record(last)]], format="argilla")
        assert told(merged).equals(told(read(tmp_path, [[record(last)]], format="argilla")))
    two = {"id": 1, "data": {"prompt": "q", "items": [{"id": n, "body": f"answer {n}"} for n in "abc"]}}

    def task(order: str, day: int) -> Row:
        result = [{"type": "ranker", "from_name": "rank", "value": {"ranker": {"_": list(order)}}}]
        when = {"created_at": "2026-01-01T00:00:00Z", "updated_at": f"2026-01-{day:02}T00:00:00Z"}
        return two | {"annotations": [{"id": 4, "completed_by": 1, "result": result, **when}]}

    for days in ((2, 3), (3, 2)):
        exports = [[task("abc", days[0])], [task("ba" if days[1] == 3 else "abc", days[1])]]
        merged = read(tmp_path, exports, format="label_studio")
        truth = exports[days.index(3)]
        assert told(merged).equals(told(read(tmp_path, [truth], format="label_studio")))


def test_halves_of_a_comparison_may_come_in_either_order(tmp_path: Path):
    half = {"run_id": "r", "key": "preferred", "value": None, "correction": None, "comparative_experiment_id": "x",
            "feedback_group_id": "g", "created_at": "2026-01-01", "feedback_source": {"user_id": "u"}}  # fmt: skip
    rows = [half | {"id": "f1", "score": 1}, half | {"id": "f2", "run_id": "s", "score": 0}]
    runs = [COMPANIONS["langsmith"], COMPANIONS["langsmith"] | {"id": "s", "outputs": {"output": "b"}}]
    merged = read(tmp_path, [rows, rows[::-1]], runs, format="langsmith")
    assert merged.events.height == 1
    (event,) = merged.events.iter_rows(named=True)
    assert event["response_a" if event["choice"] == "a" else "response_b"] == "a"
