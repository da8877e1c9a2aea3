"""Rows with tools: the assistant's calls are trained and what a tool says is not, in every kind of row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

import pytest
from raylign.conf.errors import DataError
from raylign.conf.schema import DataConfig
from raylign.data.chat_template import FAMILIES
from raylign.data.row_fields import RowError
from raylign.data.row_kinds import load_rows
from raylign.data.rows import completion_or_conversation, judged_row, pair_row, prompt_row
from raylign.data.tool_prompt import OfferedTools
from raylign.data.types import Message, RowKind
from transformers import PreTrainedTokenizerFast

from tests.unit.data.chat_families import tokenizer as made_tokenizer

Row = dict[str, object]
TOOLS = [
    {"type": "function", "function": {"name": name, "description": what, "parameters": {"type": "object"}}}
    for name, what in (("weather", "Of a city."), ("clock", "Of a city."))
]
ASK = {"role": "user", "content": "Oslo?"}
OSLO, ROME = {"city": "Oslo"}, {"city": "Rome", "unit": "°C"}
GIVEN, TOLD = ({"role": "tool", "content": text, "tool_call_id": "c"} for text in ("-4 C", "09:30"))
LAST = {"role": "assistant", "content": "It is -4 C at 09:30."}
WRITTEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "clock", "arguments": {"city": "Rome", "unit": "°C"}}\n</tool_call>'


def call(name: str, arguments: Mapping[str, str], *, as_text: bool = False) -> Row:
    given = json.dumps(arguments, ensure_ascii=False) if as_text else dict(arguments)
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": given}}


def calls(*made: object, content: str | None = None) -> Row:
    return {"role": "assistant", "content": content, "tool_calls": list(made)}


@pytest.fixture
def hermes() -> PreTrainedTokenizerFast:
    return made_tokenizer("qwen", FAMILIES["hermes"].template, "<|im_end|>")


def read(kind: RowKind, rows: list[Row], made: PreTrainedTokenizerFast, folder: Path) -> list[tuple[str, list[str]]]:
    """Of every sequence: the whole text, and each run of trained tokens as text."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_rows(kind, str(folder / "rows.jsonl"), DataConfig(max_bad_fraction=0), made)
    found = []
    for ids, mask in loaded.sequences():
        runs = groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
        found.append((made.decode(list(ids)), [made.decode([i for i, _ in run]) for on, run in runs if on]))
    return found


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("content", [None, "", "One moment."])
def test_parallel_calls_are_trained_and_answers_of_tools_are_not(
    content: str | None, as_text: bool, hermes: PreTrainedTokenizerFast, tmp_path: Path
):
    asked = calls(call("weather", OSLO, as_text=as_text), call("clock", ROME, as_text=as_text), content=content)
    row = {"messages": [ASK, asked, GIVEN, TOLD, LAST], "tools": TOOLS}
    ((whole, trained),) = read(RowKind.CONVERSATIONS, [row], hermes, tmp_path)
    said = f"{content}\n" if content else ""
    assert trained == [f"{said}{WRITTEN}\n{OTHER}<|im_end|>", "It is -4 C at 09:30.<|im_end|>"]
    assert "<tool_response>\n-4 C\n</tool_response>" in whole and '"name": "clock", "description"' in whole


def test_the_form_of_the_arguments_and_an_empty_content_change_no_token(
    hermes: PreTrainedTokenizerFast, tmp_path: Path
):
    rows: list[Row] = [
        {"messages": [ASK, calls(call("weather", OSLO, as_text=t), content=c)], "tools": given}
        for t in (False, True) for c in (None, "") for given in (TOOLS, json.dumps(TOOLS))
    ]  # fmt: skip
    assert len({str(found) for found in read(RowKind.CONVERSATIONS, rows, hermes, tmp_path)}) == 1


def test_in_pairs_a_right_call_is_told_from_a_wrong_one_and_from_words(hermes: PreTrainedTokenizerFast, tmp_path: Path):
    right, wrong = [calls(call("weather", OSLO))], [calls(call("clock", OSLO))]
    words = [{"role": "assistant", "content": "I cannot know."}]
    rows: list[Row] = [
        {"prompt": [ASK], "chosen": right, "rejected": other, "tools": TOOLS} for other in (wrong, words)
    ]
    sides = read(RowKind.PAIRS, rows, hermes, tmp_path)
    assert [trained for _, trained in sides] == [
        [f"{WRITTEN}<|im_end|>"], [f"{WRITTEN.replace('weather', 'clock')}<|im_end|>"],
        [f"{WRITTEN}<|im_end|>"], ["I cannot know.<|im_end|>"],
    ]  # fmt: skip
    assert all("<tools>" in whole for whole, _ in sides)


def test_a_whole_use_of_a_tool_is_an_answer_that_is_compared_or_judged(hermes: PreTrainedTokenizerFast, tmp_path: Path):
    good, bad = (
        [calls(call("weather", OSLO)), GIVEN, {"role": "assistant", "content": text}] for text in ("Cold.", "Warm.")
    )
    pair: Row = {"prompt": [ASK], "chosen": good, "rejected": bad, "tools": TOOLS}
    sides = read(RowKind.PAIRS, [pair], hermes, tmp_path)
    assert [trained for _, trained in sides] == [
        [f"{WRITTEN}<|im_end|>", "Cold.<|im_end|>"], [f"{WRITTEN}<|im_end|>", "Warm.<|im_end|>"]
    ]  # fmt: skip
    judged: list[Row] = [
        {"prompt": [ASK], "completion": side, "label": label, "tools": TOOLS}
        for side, label in ((good, True), (bad, False))
    ]
    assert read(RowKind.JUDGED, judged, hermes, tmp_path)[::2] == sides


def test_conversations_that_part_at_a_tools_answer_have_the_call_as_the_answers_beginning(
    hermes: PreTrainedTokenizerFast, tmp_path: Path
):
    asked = calls(call("weather", OSLO))
    pair: Row = {"chosen": [ASK, asked, GIVEN, LAST], "rejected": [ASK, asked, TOLD, LAST], "tools": TOOLS}
    sides = read(RowKind.PAIRS, [pair], hermes, tmp_path)
    assert [trained for _, trained in sides] == [[f"{WRITTEN}<|im_end|>", "It is -4 C at 09:30.<|im_end|>"]] * 2


def test_a_tool_is_written_alike_with_and_without_the_nulls_that_servers_add():
    made = made_tokenizer("qwen", FAMILIES["hermes"].template, "<|im_end|>")
    plain = {"name": "weather", "parameters": {"type": "object"}}
    forms = (
        plain,
        {"type": "function", "function": plain},
        {"type": "function", "function": {**plain, "description": None}},
    )
    assert len({made.apply_chat_template([ASK], tools=[form], tokenize=False) for form in forms}) == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ('{"city": ' + "1" * 5000 + "}", "not valid JSON"), ("[" * 100_000, "not valid JSON"),
        ('{"city": "\\ud800"}', "cannot be written as JSON"),
        ('{"city": "<|im_end|>"}', "holds an end token"), ({"city": "<|im_end|>"}, "holds an end token"),
        ('{"city": NaN}', "not valid JSON"), ('{"city": 1e999}', "cannot be written as JSON"),
        ({"city": math.nan}, "cannot be written as JSON"), ({"city": [-math.inf]}, "cannot be written as JSON"),
        (None, "call 1, of weather, has no `arguments`"), ("null", "are NoneType, not an object"),
    ],
    ids=["digits", "brackets", "half a character", "an end token in text", "an end token", "NaN in text", "too large",
         "NaN", "infinity", "none", "null in text"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [RowKind.CONVERSATIONS, RowKind.PAIRS])
def test_arguments_that_cannot_be_trained_put_their_row_aside(
    kind: RowKind, arguments: object, why: str, hermes: PreTrainedTokenizerFast, tmp_path: Path
):
    asked = calls({"id": "c", "type": "function", "function": {"name": "weather", "arguments": arguments}})
    row: Row = {"messages": [ASK, asked], "tools": TOOLS}
    if kind is RowKind.PAIRS:
        row = {"prompt": [ASK], "chosen": [asked], "rejected": [LAST], "tools": TOOLS}
    with pytest.raises(DataError, match=why):
        read(kind, [row], hermes, tmp_path)


def _every_kind(turns: list[Row], tools: object) -> dict[str, Row]:
    """A row of each kind that holds the conversation."""
    answer = {"role": "assistant", "content": "Hm."}
    return {
        "conversation": {"messages": [ASK, *turns, answer], "tools": tools},
        "completion": {"prompt": [ASK], "completion": [*turns, answer], "tools": tools},
        "chosen": {"prompt": [ASK], "chosen": [*turns, answer], "rejected": [answer], "tools": tools},
        "rejected": {"prompt": [ASK], "chosen": [answer], "rejected": [*turns, answer], "tools": tools},
        "judged": {"prompt": [ASK], "completion": [*turns, answer], "label": False, "tools": tools},
        "prompt": {"prompt": [ASK, *turns, ASK], "tools": tools},
        "teacher_prompt": {"prompt": [ASK], "teacher_prompt": [ASK, *turns, ASK], "tools": tools},
    }


_READERS: dict[str, Callable[[Mapping[str, object]], object]] = {
    "conversation": completion_or_conversation, "completion": completion_or_conversation, "chosen": pair_row,
    "rejected": pair_row, "judged": judged_row, "prompt": prompt_row, "teacher_prompt": prompt_row,
}  # fmt: skip
_WEATHER = call("weather", OSLO)
_CALLED, _ANSWERED = calls(_WEATHER), [calls(_WEATHER), GIVEN]


@pytest.mark.parametrize("kind", _READERS)
@pytest.mark.parametrize(
    ("turns", "tools", "why"),
    [
        (_ANSWERED, [TOOLS[1]], r"`tool_calls`: weather is not one of `tools` \(clock\)"),
        (_ANSWERED, [{"name": "clock", "parameters": {}}], "weather is not one of"),
        (_ANSWERED, [{}], "`tools`: tool 1 has no name"),
        (_ANSWERED, [*TOOLS, {"type": "function", "function": {"name": " "}}], "tool 3 has no name"),
        (_ANSWERED, ["weather"], "tool 1 has no name"),
        (_ANSWERED, {"weather": {}}, "`tools` is not a list"),
        (_ANSWERED, [{"name": "weather", "parameters": [1]}], "`parameters` of weather are not an object"),
        (_ANSWERED, [{"name": "weather", "parameters": {"maximum": math.nan}}], "`tools` cannot be written as JSON"),
        ([{**_CALLED, "tool_calls": _WEATHER}], TOOLS, "`tool_calls` is not a list"),
        ([calls("weather")], TOOLS, "call 1 has no name"),
        ([calls(_WEATHER, {"id": "c"})], TOOLS, "call 2 has no name"),
        ([calls({"function": {"name": "", "arguments": {}}})], TOOLS, "call 1 has no name"),
        ([calls({"function": {"name": "weather"}})], TOOLS, "of weather, has no `arguments`"),
        ([{"role": "assistant", "content": "", "function_call": "weather"}], TOOLS, "`function_call` has no name"),
        ([{"role": "user", "content": "Go.", "tool_calls": [_WEATHER]}], TOOLS, "in a user turn"),
    ],
)
def test_tools_and_calls_of_another_form_put_rows_of_every_kind_aside(
    turns: list[Row], tools: object, why: str, kind: str
):
    with pytest.raises(RowError, match=why):
        _READERS[kind](_every_kind(turns, tools)[kind])


@pytest.mark.parametrize("kind", _READERS)
@pytest.mark.parametrize("tools", [TOOLS, [{"name": "weather"}], json.dumps(TOOLS), None])
def test_a_call_of_an_offered_tool_is_kept_and_without_tools_any_is(tools: object, kind: str):
    assert _READERS[kind](_every_kind(_ANSWERED, tools)[kind])


def test_a_prompt_with_a_call_of_a_tool_that_the_environment_lacks_is_refused():
    turns = (Message("user", "Oslo?"), Message("assistant", "", json.dumps({"tool_calls": [_WEATHER]})))
    assert OfferedTools(TOOLS, in_template=True).turns(turns) == turns
    with pytest.raises(RowError, match="weather is not one of"):
        OfferedTools(TOOLS[1:], in_template=True).turns(turns)
