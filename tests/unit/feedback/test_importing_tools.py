"""Files as LangSmith, Langfuse, Open WebUI, Argilla, Label Studio and request logs write them, read value by value."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from raylign.conf.errors import DataError
from raylign.feedback.events import EVENT_SCHEMA, hash_user
from raylign.feedback.importers import ImportResult, read_log

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SALT = "pepper"
TEA = [{"role": "user", "content": "What is tea?"}]


def hashed(raw: str) -> str:
    return hash_user(raw, SALT)


def lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, companion: Path | None = None, format: str | None = None) -> ImportResult:
    return read_log([path], companion=companion, format=format, user_salt=SALT, now=NOW)


def event(result: ImportResult, row: int = 0) -> dict[str, object]:
    """What is known of one event: without the columns that are null or empty."""
    values = result.events.row(row, named=True)
    assert list(values) == list(EVENT_SCHEMA)
    return {name: value for name, value in values.items() if value is not None and value != []}


def reasons(result: ImportResult) -> list[tuple[int, str]]:
    return result.quarantined.select("line", "reason").rows()


def langsmith(number: int, **changes: object) -> dict[str, object]:
    return {
        "id": f"f{number}",
        "created_at": "2026-03-01T12:00:30.500000+00:00",
        "modified_at": "2026-03-01T12:00:31+00:00",
        "run_id": "r1",
        "trace_id": "r1",
        "session_id": "project-9",
        "key": "user_score",
        "score": 1.0,
        "value": None,
        "comment": None,
        "correction": None,
        "feedback_source": {"type": "app", "metadata": {}, "user_id": "judge-1"},
        "comparative_experiment_id": None,
        "feedback_group_id": None,
    } | changes


def langsmith_runs() -> list[dict[str, object]]:
    human = {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "HumanMessage"]}
    message = {"kwargs": {"content": "Hot leaves.", "type": "ai"}, "id": ["langchain", "schema", "AIMessage"]}
    common = {"run_type": "llm", "start_time": "2026-03-01T12:00:00", "end_time": "2026-03-01T12:00:10"}
    return [
        common
        | {
            "id": "r1",
            "inputs": {"messages": TEA},
            "outputs": {"choices": [{"message": {"role": "assistant", "content": "A drink."}}]},
            "extra": {"metadata": {"ls_model_name": "m1", "user_id": "ann", "thread_id": "t1", "revision_id": "v3"}},
        },
        common
        | {
            "id": "r2",
            "inputs": {"messages": [[human | {"kwargs": {"content": "What is tea?", "type": "human"}}]]},
            "outputs": {"generations": [[{"text": "", "message": message}]]},
            "extra": {"metadata": {"ls_model_name": "m2"}},
        },
        common | {"id": "r3", "inputs": {"question": "What is tea?"}, "outputs": {"answer": "Grass."}},
        common
        | {"id": "r4", "inputs": {"question": "q"}, "outputs": {"answer": "a"}, "end_time": "2026-03-01T11:00:00"},
    ]


def test_langsmith(tmp_path: Path):
    pair = {"comparative_experiment_id": "x1", "key": "preferred"}
    feedback = [
        langsmith(1),
        langsmith(2, score=0.25, key="quality", run_id="r2"),
        langsmith(3, score=None, correction={"answer": "A hot drink."}, run_id="r3", comment="be exact"),
        langsmith(4, score=0, feedback_group_id="g1", **pair),
        langsmith(5, score=1, feedback_group_id="g1", run_id="r3", **pair),
        langsmith(6, score=1, feedback_group_id="g2", **pair),
        langsmith(7, feedback_source={"type": "model", "user_id": None, "metadata": {}}),
        langsmith(8, run_id="gone"),
        langsmith(9, score=7, key="stars"),
        langsmith(10, run_id="r4"),
        langsmith(11, modified_at="2026-02-01T00:00:00"),
    ]
    result = read(lines(tmp_path / "feedback.jsonl", feedback), lines(tmp_path / "runs.jsonl", langsmith_runs()))

    assert (result.format, result.companion_rows, result.companion_quarantined.height) == ("langsmith", 4, 0)
    assert event(result) == {
        "event_id": "langsmith:f1",
        "kind": "thumb",
        "source": "langsmith",
        "source_row": 1,
        "prompt": TEA,
        "response_a": "A drink.",
        "conversation_id": "t1",
        "user_hash": hashed("ann"),
        "annotator_hash": hashed("judge-1"),
        "time": datetime(2026, 3, 1, 12, 0, 30, 500_000, tzinfo=UTC),
        "updated": datetime(2026, 3, 1, 12, 0, 31, tzinfo=UTC),
        "seconds_taken": 20.5,
        "model_a": "m1",
        "model_version": "v3",
        "thumb": 1,
        "score": "user_score",
        "reasons": ["user_score"],
    }
    rating, correction, side = event(result, 1), event(result, 2), event(result, 3)
    assert (rating["kind"], rating["rating"], rating["response_a"]) == ("rating", 0.25, "Hot leaves.")
    assert (rating["prompt"], rating["user_hash"]) == (TEA, hashed("judge-1"))
    assert (correction["kind"], correction["corrected"], correction["comment"]) == (
        "correction",
        "A hot drink.",
        "be exact",
    )
    assert (side["kind"], side["choice"], side["response_a"], side["response_b"]) == (
        "side_by_side",
        "b",
        "A drink.",
        "Grass.",
    )
    assert (side["event_id"], side["source_row"]) == ("langsmith:f4", 5)
    assert [line for line, _ in reasons(result)] == [6, 7, 8, 9, 10, 11]
    for (_, reason), said in zip(
        reasons(result),
        (
            "half a comparison",
            "by a model",
            "`gone` is not in runs.jsonl",
            "scale",
            "the run ends before",
            "feedback ends before",
        ),
        strict=True,
    ):
        assert said in reason
    assert (result.rows_in, result.rows_by_judgements, result.judgements_in) == (11, {0: 1, 1: 10}, 10)


def test_a_missing_or_needless_companion_is_refused(tmp_path: Path):
    feedback = lines(tmp_path / "feedback.jsonl", [langsmith(1)])
    with pytest.raises(DataError, match=r"give the exported runs .* as the companion"):
        read(feedback)
    pairs = lines(
        tmp_path / "hh.jsonl", [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}]
    )
    with pytest.raises(DataError, match="takes none"):
        read(pairs, companion=feedback)


def test_bad_companion_rows_are_counted_apart(tmp_path: Path):
    runs = lines(tmp_path / "runs.jsonl", langsmith_runs())
    runs.write_text(runs.read_text() + '{"broken\n{"no_id": 1}\n')
    result = read(lines(tmp_path / "feedback.jsonl", [langsmith(1)]), runs)

    assert (result.rows_in, result.events.height, result.companion_rows) == (1, 1, 6)
    assert result.companion_quarantined["line"].to_list() == [5, 6]


SCORES = [
    {"id": "s1", "traceId": "t1", "name": "thumbs", "value": 1, "stringValue": "True", "dataType": "BOOLEAN"},
    {"id": "s2", "traceId": "t1", "name": "quality", "value": 0.75, "dataType": "NUMERIC"},
    {"id": "s3", "traceId": "t1", "name": "mood", "value": 0, "stringValue": "negative", "dataType": "CATEGORICAL"},
    {
        "id": "s4",
        "traceId": "t1",
        "name": "output",
        "value": 0,
        "stringValue": "A hot drink.",
        "dataType": "CORRECTION",
    },
    {"id": "s5", "traceId": "t1", "name": "judge", "value": 1, "dataType": "NUMERIC", "source": "EVAL"},
    {"id": "s6", "traceId": "t1", "name": "stars", "value": 4, "dataType": "NUMERIC"},
    {"id": "s7", "traceId": "t1", "name": "mood", "value": 0, "stringValue": "puzzled", "dataType": "CATEGORICAL"},
]
TRACE = {
    "id": "t1",
    "timestamp": "2026-03-01T12:00:00.000Z",
    "input": {"messages": TEA},
    "output": {"role": "assistant", "content": "A drink."},
    "sessionId": "chat-1",
    "userId": "ann",
    "version": "v2",
    "environment": "production",
}


def test_langfuse_from_the_api(tmp_path: Path):
    common = {"source": "API", "timestamp": "2026-03-01T12:01:00.000Z", "comment": None, "authorUserId": "judge-1"}
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"data": [common | score for score in SCORES], "meta": {"page": 1}}))
    traces = tmp_path / "traces.json"
    traces.write_text(json.dumps([TRACE]))
    result = read(scores, traces)

    assert event(result) == {
        "event_id": "langfuse:s1",
        "kind": "thumb",
        "source": "langfuse",
        "source_row": 1,
        "prompt": TEA,
        "response_a": "A drink.",
        "conversation_id": "chat-1",
        "user_hash": hashed("ann"),
        "annotator_hash": hashed("judge-1"),
        "time": datetime(2026, 3, 1, 12, 1, tzinfo=UTC),
        "model_version": "v2",
        "thumb": 1,
        "score": "thumbs",
        "reasons": ["thumbs"],
        "surface": "production",
    }
    assert (event(result, 1)["kind"], event(result, 1)["rating"]) == ("rating", 0.75)
    assert (event(result, 2)["kind"], event(result, 2)["thumb"]) == ("thumb", -1)
    assert (event(result, 3)["kind"], event(result, 3)["corrected"]) == ("correction", "A hot drink.")
    assert [line for line, _ in reasons(result)] == [5, 6, 7]


def test_langfuse_from_blob_storage(tmp_path: Path):
    score = {
        "id": "s1",
        "timestamp": "2026-03-01 12:01:00.000000",
        "trace_id": "t1",
        "observation_id": None,
        "name": "thumbs",
        "value": 0,
        "string_value": "False",
        "data_type": "BOOLEAN",
        "source": "API",
    }
    observations = [
        {"id": "o2", "trace_id": "t1", "parent_observation_id": "o1", "input": "inner", "output": "inner"},
        {"id": "o1", "trace_id": "t1", "parent_observation_id": None, "input": json.dumps(TEA), "output": "A drink.",
         "user_id": "ann", "provided_model_name": "m1",
         "start_time": "2026-03-01 12:00:00", "end_time": "2026-03-01 12:00:01"},
    ]  # fmt: skip
    scores = [score, score | {"id": "s2", "observation_id": "o2", "value": 1}]
    result = read(lines(tmp_path / "scores.jsonl", scores), lines(tmp_path / "observations.jsonl", observations))

    first, second = event(result), event(result, 1)
    assert (first["prompt"], first["thumb"], first["model_a"], first["user_hash"]) == (TEA, -1, "m1", hashed("ann"))
    assert (second["response_a"], second["thumb"]) == ("inner", 1)


def open_webui(number: int, data: dict[str, object], **meta: object) -> dict[str, object]:
    messages = {
        "u1": {"id": "u1", "parentId": None, "childrenIds": ["a1"], "role": "user", "content": "Hello", "timestamp": 1},
        "a1": {"id": "a1", "parentId": "u1", "childrenIds": ["u2"], "role": "assistant", "content": "Hi!",
               "model": "m1"},
        "u2": {"id": "u2", "parentId": "a1", "childrenIds": ["a2", "a3"], "role": "user", "content": "What is tea?"},
        "a2": {"id": "a2", "parentId": "u2", "childrenIds": [], "role": "assistant", "content": "A drink.",
               "model": "arena-model", "selectedModelId": "m1", "modelIdx": 1},
        "a3": {"id": "a3", "parentId": "u2", "childrenIds": [], "role": "assistant", "content": "Leaves.",
               "model": "arena-model", "selectedModelId": "m2", "modelIdx": 0},
    }  # fmt: skip
    chat = {"title": "Tea", "models": ["m1"], "history": {"messages": messages, "currentId": "a2"}, "messages": []}
    return {
        "id": f"f{number}",
        "user_id": "ann",
        "version": 0,
        "type": "rating",
        "data": {"rating": 1, "model_id": "m1", "sibling_model_ids": None, "reason": "", "comment": "", "tags": []}
        | data,
        "meta": {"arena": False, "chat_id": "chat-1", "message_id": "a2"} | meta,
        "snapshot": {"chat": {"id": "chat-1", "user_id": "ann", "chat": chat}},
        "created_at": 1772366400,
        "updated_at": 1772366401,
    }


def test_open_webui(tmp_path: Path):
    export = tmp_path / "feedback-history-export.json"
    feedback = [
        open_webui(
            1, {"rating": -1, "reason": "too_short", "comment": "more", "tags": ["food"], "details": {"rating": 4}}
        ),
        open_webui(2, {"rating": "-1", "sibling_model_ids": ["m2"]}, arena=True),
        open_webui(3, {"rating": 0}),
        open_webui(4, {}, message_id="gone"),
        {k: v for k, v in open_webui(5, {}).items() if k != "snapshot"},
        open_webui(6, {}) | {"updated_at": 1772366000},
    ]
    export.write_text(json.dumps(feedback, indent=2))
    result = read(export)

    prompt = [*({"role": r, "content": c} for r, c in (("user", "Hello"), ("assistant", "Hi!"))), *TEA]
    common = {
        "source": "open_webui",
        "prompt": prompt,
        "response_a": "A drink.",
        "conversation_id": "chat-1",
        "turn": 1,
        "user_hash": hashed("ann"),
        "time": datetime(2026, 3, 1, 12, tzinfo=UTC),
        "updated": datetime(2026, 3, 1, 12, 0, 1, tzinfo=UTC),
        "model_a": "m1",
    }
    thumb = {"event_id": "open_webui:f1", "kind": "thumb", "source_row": 1, "thumb": -1, "rating": 3 / 9}
    assert event(result) == common | thumb | {"reasons": ["too_short"], "comment": "more", "topic": "food"}
    side = {"event_id": "open_webui:f2", "kind": "side_by_side", "source_row": 2, "choice": "b", "shown_left": "b"}
    assert event(result, 1) == common | side | {"response_b": "Leaves.", "model_b": "m2"}
    assert [line for line, _ in reasons(result)] == [3, 4, 5, 6]
    for (_, reason), said in zip(
        reasons(result), ("expected 1 or -1", "`gone`", "no snapshot", "ends before"), strict=True
    ):
        assert said in reason


def test_open_webui_chat_going_round_in_a_circle_is_put_aside(tmp_path: Path):
    feedback = open_webui(1, {})
    feedback["snapshot"]["chat"]["chat"]["history"]["messages"]["u1"]["parentId"] = "a1"  # type: ignore[index]
    result = read(lines(tmp_path / "export.jsonl", [feedback]))
    assert reasons(result) == [(1, "the chat's messages go round in a circle")]


SETTINGS = {
    "guidelines": None,
    "fields": [{"name": "prompt", "settings": {"type": "text"}}],
    "questions": [
        {"name": "quality", "settings": {"type": "rating", "options": [{"value": v} for v in range(1, 8)]}},
        {"name": "better", "settings": {"type": "label_selection", "options": [{"value": "response_1", "text": "1"}]}},
    ],
}


def test_argilla_nested(tmp_path: Path):
    single = {
        "id": "rec-1",
        "fields": {"prompt": "What is tea?", "response": "A drink."},
        "metadata": {},
        "suggestions": {},
        "responses": {
            "quality": [{"value": 4, "user_id": "ann"}, {"value": 9, "user_id": "bob"}],
            "corrected-text": [{"value": "A hot drink.", "user_id": "ann"}],
            "comment": [{"value": "too short", "user_id": "ann"}],
        },
        "vectors": {},
        "_server_id": "x",
    }
    pair_fields = {"prompt": "What is tea?", "response_1": "A drink.", "response_2": "Leaves.", "response_3": "Hm."}
    pair = single | {
        "id": "rec-2",
        "fields": pair_fields,
        "responses": {
            "better": [{"value": "response_2", "user_id": "ann"}],
            "rank": [{"value": ["response_3", "response_1", "response_2"], "user_id": "bob"}],
        },
    }
    records = tmp_path / "records.json"
    records.write_text(json.dumps([single, pair, single | {"id": "rec-3", "responses": {}}]))
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(SETTINGS))
    result = read(records, settings)

    assert event(result) == {
        "event_id": f"argilla:rec-1:quality:{hashed('ann')}",
        "kind": "rating",
        "source": "argilla",
        "source_row": 1,
        "prompt": TEA,
        "response_a": "A drink.",
        "annotator_hash": hashed("ann"),
        "rating": 0.5,
        "score": "quality",
        "reasons": ["quality"],
        "comment": "too short",
    }
    correction, choice, first, second = (event(result, row) for row in (1, 2, 3, 4))
    assert (correction["kind"], correction["corrected"]) == ("correction", "A hot drink.")
    assert (choice["choice"], choice["response_a"], choice["response_b"]) == ("b", "A drink.", "Leaves.")
    assert [(e["response_a"], e["response_b"], e["choice"]) for e in (first, second)] == [
        ("Hm.", "A drink.", "a"),
        ("A drink.", "Leaves.", "a"),
    ]
    assert reasons(result) == [(1, "`quality` is 9; its scale is 1 to 7"), (3, "a record nobody has judged")]
    # rec-1: two ratings and a correction; rec-2: a choice and two pairs; rec-3: nothing
    assert (result.rows_in, result.rows_by_judgements, result.judgements_in) == (3, {1: 1, 3: 2}, 7)


def test_argilla_ratings_without_their_scale_are_put_aside(tmp_path: Path):
    record = {
        "id": "1",
        "fields": {"prompt": "q", "response": "a"},
        "responses": {"stars": [{"value": 4, "user_id": "u"}]},
    }
    result = read(lines(tmp_path / "records.jsonl", [record]))
    assert result.events.height == 0 and "settings.json" in result.quarantined["reason"][0]


def test_argilla_flattened_takes_submitted_responses_only(tmp_path: Path):
    record = {
        "id": "rec-1",
        "_server_id": "x",
        "prompt": "What is tea?",
        "response1": "A drink.",
        "response2": "Leaves.",
        "better.responses": ["response1", "response2", "tie", "neither"],
        "better.responses.users": ["ann", "bob", "cy", "di"],
        "better.responses.status": ["submitted", "draft", "submitted", "submitted"],
        "better.suggestion": "response2",
    }
    result = read(lines(tmp_path / "records.jsonl", [record]))

    assert result.events["choice"].to_list() == ["a", "skipped", "both_bad"]
    assert result.events["annotator_hash"].to_list() == [hashed("ann"), hashed("cy"), hashed("di")]
    assert result.events["reasons"].to_list() == [[], ["tie"], []]
    assert reasons(result) == [(1, "question `better`: draft, not submitted")]


def test_label_studio_rankings_are_pairs_of_neighbours_the_best_first(tmp_path: Path):
    items = [{"id": f"llm_{n}", "title": f"Answer {n}", "body": f"text {n}"} for n in (1, 2, 3)]

    def task(number: int, value: object, name: str = "rank") -> dict[str, object]:
        result = {"from_name": name, "to_name": "answers", "type": "ranker", "value": {"ranker": value}}
        annotation = {"id": 10 + number, "completed_by": 7, "result": [result], "created_at": "2026-03-01T12:00:00Z"}
        return {"id": number, "data": {"prompt": "What is tea?", "items": items}, "annotations": [annotation]}

    log = tmp_path / "ranked.json"
    rows = [task(1, {"rank": ["llm_3", "llm_1", "llm_2"]}), task(2, ["llm_1", "llm_3"]),
            task(3, {"good": ["llm_1"], "bad": ["llm_2", "llm_3"]}), task(4, {"rank": ["llm_1", "llm_9"]}),
            task(5, {"rank": ["llm_1"]})]  # fmt: skip
    log.write_text(json.dumps(rows))
    result = read_log([log], user_salt="salt")
    told = result.events.select("event_id", "response_a", "response_b", "choice").rows()
    assert told == [
        ("label_studio:1:11:1", "text 3", "text 1", "a"),
        ("label_studio:1:11:2", "text 1", "text 2", "a"),
        ("label_studio:2:12:1", "text 1", "text 3", "a"),
    ]
    assert result.events["prompt"][0].to_list() == [{"role": "user", "content": "What is tea?"}]
    reasons = result.quarantined["reason"].to_list()
    assert [reason.split(";")[0] for reason in reasons] == [
        "items in buckets",
        "a ranking of `llm_9`, which is not in `data`",
        "a ranking of fewer than two items of the one list in `data`",
    ]


def test_label_studio(tmp_path: Path):
    def annotation(number: int, selected: str | None, **changes: object) -> dict[str, object]:
        picked = {"id": "x", "from_name": "pw", "to_name": "txt-1", "type": "pairwise", "value": {"selected": selected}}
        return {
            "id": number,
            "completed_by": 7,
            "result": [picked] if selected else [],
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": "2026-03-01T12:00:00.000000Z",
            "updated_at": "2026-03-01T12:00:05.000000Z",
            "lead_time": 4.25,
        } | changes

    def task(number: int, *annotations: object) -> dict[str, object]:
        data = {"prompt": "What is tea?", "answer1": "A drink.", "answer2": "Leaves."}
        return {"id": number, "data": data, "annotations": list(annotations), "predictions": [], "project": 1}

    tasks = [
        task(1, annotation(11, "left"), annotation(12, "right", completed_by={"id": 8, "email": "b@x.org"})),
        task(2, annotation(13, None, was_cancelled=True), annotation(14, None), annotation(15, "up")),
        task(3),
        task(4, annotation(16, "left", updated_at="2026-02-01T00:00:00Z"), annotation(17, "left", lead_time=-3)),
    ]
    export = tmp_path / "project-1.json"
    export.write_text(json.dumps(tasks))
    result = read(export)

    assert event(result) == {
        "event_id": "label_studio:1:11",
        "kind": "side_by_side",
        "source": "label_studio",
        "source_row": 1,
        "prompt": TEA,
        "response_a": "A drink.",
        "response_b": "Leaves.",
        "annotator_hash": hashed("7"),
        "time": datetime(2026, 3, 1, 12, tzinfo=UTC),
        "updated": datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC),
        "seconds_taken": 4.25,
        "shown_left": "a",
        "choice": "a",
    }
    assert result.events["choice"].to_list() == ["a", "b", "skipped"]
    assert event(result, 1)["annotator_hash"] == hashed("8")
    assert [line for line, _ in reasons(result)] == [2, 2, 3, 4, 4]
    assert (result.rows_in, result.rows_by_judgements, result.judgements_in) == (4, {1: 1, 2: 2, 3: 1}, 8)


def test_request_log_with_a_feedback_table(tmp_path: Path):
    requests = [
        {
            "request_id": "q1",
            "created_at": 1772366400,
            "request": {"model": "m1", "user": "ann",
                        "messages": [{"role": "user", "content": [{"type": "text", "text": "What is tea?"}]}]},
            "response": {"id": "chatcmpl-1", "model": "m1-0301", "choices": [
                {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "A drink."}},
                {"index": 1, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": "Leaves."}}]},
        },
        {"id": "q2", "model": "m1", "messages": TEA, "choices": [{"message": {"role": "assistant", "content": None,
         "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}]},
    ]  # fmt: skip
    with (tmp_path / "feedback.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["request_id", "rating", "correction", "comment", "created_at", "choice_index"])
        table.writerow(["q1", "up", "", 'said "yes",\nthen left', "2026-03-01T12:00:20Z", ""])
        table.writerow(["q1", "", "A hot drink.", "", "", "1"])
        table.writerow(["q1", "up", "", "", "", "5"])
        table.writerow(["q2", "down", "", "", "", ""])
        table.writerow(["q3", "down", "", "", "", ""])
        table.writerow(["q1", "so so", "", "", "", ""])
        table.writerow(["q1", "up"])
    result = read(tmp_path / "feedback.csv", lines(tmp_path / "requests.jsonl", requests))

    first, second = event(result), event(result, 1)
    assert first.pop("event_id") != second["event_id"]
    assert first == {
        "kind": "thumb",
        "source": "openai_log",
        "source_row": 2,
        "prompt": TEA,
        "response_a": "A drink.",
        "finish_reason_a": "length",
        "user_hash": hashed("ann"),
        "time": datetime(2026, 3, 1, 12, 0, 20, tzinfo=UTC),
        "seconds_taken": 20.0,
        "model_a": "m1-0301",
        "thumb": 1,
        "score": "rating",
        "comment": 'said "yes",\nthen left',
    }
    assert (second["kind"], second["response_a"], second["corrected"]) == ("correction", "Leaves.", "A hot drink.")
    assert "finish_reason_a" not in second  # "tool_calls" does not say that the text is whole
    assert result.events["response_a"][2].startswith('\x1d{"tool_calls"')
    assert [line for line, _ in reasons(result)] == [5, 7, 8, 9]  # lines of the file: the first record takes two
    for (_, reason), said in zip(
        reasons(result),
        ("2 choices", "`q3` is not in", "no word for", "2 fields, and the header"),
        strict=True,
    ):
        assert said in reason
