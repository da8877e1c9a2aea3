"""Calls of tools, what tools said and the tools that were offered: from logs of every vendor's form to rows, whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from raylign.data.rows import completion_or_conversation, judged_row, pair_row
from raylign.feedback.browse.shelf import open_shelf
from raylign.feedback.build import build
from raylign.feedback.importers import ImportResult, read_log
from raylign.feedback.importers.calls import turn_with_calls
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.responses_api import answered, asked
from raylign.feedback.source import Source
from raylign.feedback.turns import FIELDS, TURN, changed

ASK = {"role": "user", "content": "Oslo? I am at a@x.org"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}},
}
OPENAI = [
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "-4 C"},
]
ANTHROPIC = [
    ASK,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "-4 C"}]},
]
LANGCHAIN = [
    {"role": "user", "content": ASK["content"]},
    {"type": "ai", "content": "", "tool_calls": [{"name": "weather", "args": {"city": "Oslo"}, "id": "c1"}]},
    {"type": "tool", "content": "-4 C", "tool_call_id": "c1"},
]
RESPONSES = [
    ASK,
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "-4 C"},
]
FLAT = {"type": "function", "name": "weather", "description": "Of a city.", "parameters": {"type": "object"}}
SCHEMA = {"name": "weather", "description": "Of a city.", "input_schema": {"type": "object"}}
COLD = {"role": "assistant", "content": "It is -4 C."}


def lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def logged(folder: Path, request: object, response: object) -> tuple[Path, Path]:
    one = {"request_id": "q", "request": request, "response": response}
    return lines(folder / "said.jsonl", [{"request_id": "q", "rating": "up"}]), lines(folder / "log.jsonl", [one])


def chat(folder: Path, turns: object = OPENAI, tools: object = (TOOL,), answer: object = COLD) -> tuple[Path, Path]:
    return logged(folder, {"messages": turns, "tools": tools}, {"choices": [{"message": answer}]})


def anthropic(folder: Path) -> tuple[Path, Path]:
    told = {"content": [{"type": "text", "text": COLD["content"]}], "stop_reason": "end_turn"}
    return logged(folder, {"messages": ANTHROPIC, "tools": [SCHEMA]}, told)


def responses(folder: Path) -> tuple[Path, Path]:
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": COLD["content"]}]}]
    return logged(folder, {"input": RESPONSES, "tools": [FLAT]}, {"output": output})


def langfuse(folder: Path) -> tuple[Path, Path]:
    score = {"id": "s", "traceId": "t", "name": "thumbs", "value": 1, "dataType": "BOOLEAN"}
    trace = {"id": "t", "input": {"messages": OPENAI, "tools": [TOOL]}, "output": COLD}
    return lines(folder / "said.jsonl", [score]), lines(folder / "log.jsonl", [trace])


def langsmith(folder: Path) -> tuple[Path, Path]:
    said = {"id": "f", "run_id": "r", "key": "thumb", "score": 1, "feedback_source": {"type": "app"}}
    invoked = {"invocation_params": {"tools": [TOOL]}}
    run = {"id": "r", "inputs": {"messages": LANGCHAIN}, "outputs": COLD, "extra": invoked}
    return lines(folder / "said.jsonl", [said]), lines(folder / "log.jsonl", [run])


def native(folder: Path) -> tuple[Path, None]:
    turns = [{**turn, "content": turn["content"] or ""} for turn in OPENAI]
    event = {"event_id": "e", "kind": "thumb", "thumb": 1, "prompt": turns, "response_a": COLD["content"]}
    return lines(folder / "said.jsonl", [event | {"tools": [TOOL]}]), None


def read(files: tuple[Path, Path | None]) -> ImportResult:
    return read_log([files[0]], companion=files[1], user_salt="s")


def rows(files: tuple[Path, Path | None], folder: Path, kind: str, *overrides: str) -> list[dict]:
    source = Source(logs=(files[0],), companion=files[1], overrides=("split.eval=0", "split.test=0", *overrides))
    build(source, folder / "built", with_report=False)
    return [json.loads(line) for line in (folder / "built" / kind / "train.jsonl").read_text().splitlines()]


MADE = [chat, anthropic, responses, langfuse, langsmith, native]


@pytest.mark.parametrize("make", MADE)
def test_calls_and_tools_of_every_form_are_in_the_row_and_the_row_can_be_trained(make, tmp_path: Path):
    (row,) = rows(make(tmp_path), tmp_path, "sft", "privacy.redact=false")
    assert row["tools"] == [TOOL]
    assert row["messages"] == [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "-4 C", "tool_call_id": "c1"},
        COLD,
    ]
    assert completion_or_conversation(row)


def test_an_answer_that_is_a_call_is_judged_as_one(tmp_path: Path):
    files = chat(tmp_path, [ASK], answer=OPENAI[1])
    (row,) = rows(files, tmp_path, "kto", "privacy.redact=false")
    assert row["completion"] == [{"role": "assistant", "content": "", "tool_calls": [CALL]}] and judged_row(row)
    assert row["prompt"] == [ASK] and row["tools"] == [TOOL]


def test_two_calls_are_compared(tmp_path: Path):
    wrong = json.loads(json.dumps(CALL).replace("Oslo", "Rome"))
    sides = {"chosen": [{"role": "assistant", "content": "", "tool_calls": [CALL]}],
             "rejected": [{"role": "assistant", "content": "", "tool_calls": [wrong]}]}  # fmt: skip
    given = lines(tmp_path / "pairs.jsonl", [{"prompt": [ASK], "tools": [TOOL], **sides}])
    (row,) = rows((given, None), tmp_path, "pairs", "privacy.redact=false")
    assert {name: row[name] for name in sides} == sides and row["tools"] == [TOOL] and pair_row(row)


def test_a_use_of_a_tool_in_a_completion_is_not_cut_to_its_last_turn(tmp_path: Path):
    row = {"prompt": [ASK], "completion": [*OPENAI[1:], COLD], "label": True}
    prompt = read((lines(tmp_path / "kto.jsonl", [row]), None)).events["prompt"][0]
    assert [turn["role"] for turn in prompt] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tools": [{}]}, "`tools`: tool 1 has no name"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tool of the vendor's own"),
        ({"tools": [{**SCHEMA, "name": "clock"}]}, "weather is not one of `tools`"),
        ({"tools": "[{"}, "`tools`: it is text but not JSON"),
        ({"tools": "[" * 100_000}, "`tools`: it is text but not JSON"),
        ({"turns": [ASK, {"role": "assistant", "tool_calls": [{"id": "c"}]}, OPENAI[2]]}, "call 1 has no name"),
        ({"turns": [ASK, {"role": "assistant", "tool_calls": "weather"}, OPENAI[2]]}, "is not a list"),
        ({"answer": {"role": "assistant", "content": "", "invalid_tool_calls": [CALL]}}, "invalid_tool_calls"),
    ],
)
def test_what_is_no_call_or_tool_puts_its_row_aside_by_name(changes: Mapping[str, object], why: str, tmp_path: Path):
    found = read(chat(tmp_path, **changes))  # type: ignore[arg-type]
    assert found.events.height == 0 and why in found.quarantined["reason"][0]


def test_personal_data_in_arguments_is_replaced_and_the_arguments_stay_json(tmp_path: Path):
    arguments = json.dumps({"to": "a@x.org", "of": ["b@y.org"], "card": 4111111111111111, "n": 3, "f": 1.5})
    told = CALL | {"function": {"name": "weather", "arguments": arguments}}
    files = chat(tmp_path, [ASK, {"role": "assistant", "content": None, "tool_calls": [told]}, OPENAI[2]])
    (row,) = rows(files, tmp_path, "sft")
    given = json.loads(row["messages"][1]["tool_calls"][0]["function"]["arguments"])
    assert given == {"to": "<EMAIL_1>", "of": ["<EMAIL_2>"], "card": "<CARD_1>", "n": 3, "f": 1.5}
    assert row["messages"][0]["content"].endswith("<EMAIL_1>")


def test_a_sign_in_somebodys_text_makes_no_call(tmp_path: Path):
    forged = f'Hi{FIELDS}{{"tool_calls": []}}'
    found = read(chat(tmp_path, [{"role": "user", "content": forged}], answer={"role": "assistant", "content": forged}))
    assert FIELDS not in found.events["response_a"][0] and FIELDS not in found.events["prompt"][0][-1]["content"]


def test_words_and_texts_in_fields_are_changed_alike():
    packed = f'user\x1fa{TURN}assistant\x1fb{FIELDS}{{"x": ["a", "{{\\"y\\": \\"a\\"}}"], "n": 1}}'
    assert changed(packed, str.upper) == (
        f'USER\x1fA{TURN}ASSISTANT\x1fB{FIELDS}{{"x": ["A", "{{\\"y\\": \\"A\\"}}"], "n": 1}}'
    )


def test_words_before_a_call_are_of_its_turn_in_the_responses_api_too():
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    turns = asked({"input": [ASK, said, RESPONSES[1], RESPONSES[1], RESPONSES[2]]}, {}, None)  # type: ignore[arg-type]
    assert [turn.role for turn in turns] == ["user", "assistant", "tool"] and turns[1].content == "I look."
    assert len(json.loads(turns[1].extra)["tool_calls"]) == 2


@pytest.mark.parametrize("broken", [{"type": "message"}, {"type": "function_call_output", "call_id": "c1"}])
def test_items_that_lack_a_field_put_their_row_aside(broken: dict[str, str]):
    with pytest.raises(RowProblem, match="a turn of `input` has"):
        asked({"input": [*RESPONSES, broken]}, {}, None)  # type: ignore[arg-type]


def test_an_answer_that_holds_what_a_tool_said_puts_its_row_aside():
    said = {"role": "assistant", "content": [{"type": "tool_result", "content": "-4 C"}, "It is cold."]}
    with pytest.raises(RowProblem, match="holds what a tool said"):
        answered({"output": [said]})


def test_fields_in_which_nothing_is_found_stay_to_the_letter():
    """Written anew, 1e999 would be Infinity, which is no JSON."""
    text = "b" + FIELDS + json.dumps({"arguments": '{"x":1e999,"y":[ 1 ]}', "deep": "[" * 100_000})
    assert changed(text, lambda words: words.replace("z", "-")) == text


def test_arguments_that_json_does_not_hold_put_their_row_aside():
    """Files with types, as parquet, have times in them."""
    call = {"function": {"name": "weather", "arguments": {"at": datetime(2026, 1, 1)}}}
    with pytest.raises(RowProblem, match="arguments cannot be written as JSON"):
        turn_with_calls("assistant", "", {"tool_calls": [call]}, "messages")


def test_builds_without_calls_are_written_as_they_were(tmp_path: Path):
    """Rows of one build are written in two ways: with calls by hand, without by polars."""
    (with_tools,) = rows(native(tmp_path), tmp_path, "sft")
    folder = tmp_path / "plain"
    folder.mkdir()
    plain = {"event_id": "e", "kind": "thumb", "thumb": 1, "prompt": [ASK], "response_a": COLD["content"]}
    (row,) = rows((lines(folder / "log.jsonl", [plain]), None), folder, "sft")
    assert list(row) == [name for name in with_tools if name != "tools"]
    assert pl.read_ndjson(folder / "built" / "sft" / "train.jsonl").height == 1


def test_a_reader_of_the_build_sees_calls_in_events_and_rows(tmp_path: Path):
    rows(chat(tmp_path, [ASK], answer=OPENAI[1]), tmp_path, "kto")
    shelf = open_shelf(tmp_path / "built")
    assert '"name": "weather"' in shelf.rows.filter(pl.col("kind") == "kto")["answer"][0]
    assert '"name": "weather"' in shelf.events["answer_a"][0]
