"""What stood beside a question is a turn of the prompt or the reason why a row was quarantined, never nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from raylign.feedback.importers import ImportResult, read_log

from .test_import_fuzz import COMPANIONS, GOOD

ASKED = {"role": "user", "content": "And building 2?"}
BEFORE = [("user", "How do I reset pump 7?"), ("assistant", "Hold the button.")]


def read(folder: Path, rows: Sequence[object], companion: Sequence[object] = (), **how: object) -> ImportResult:
    log, other = folder / "log.jsonl", folder / "other.jsonl"
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    other.write_text("".join(f"{json.dumps(row)}\n" for row in companion))
    return read_log([log], companion=other if companion else None, user_salt="salt", **how)  # type: ignore[arg-type]


def langsmith(folder: Path, inputs: object, outputs: object = None) -> ImportResult:
    run = {"id": "r1", "inputs": inputs, "outputs": outputs or {"answer": "Rinse the mesh."}}
    feedback = {"id": "f1", "run_id": "r1", "key": "user_score", "score": 1}
    return read(folder, [feedback], [run])


def turns(found: ImportResult) -> list[tuple[str, str]]:
    assert found.quarantined.height == 0, found.quarantined["reason"].to_list()
    return [(turn["role"], turn["content"]) for turn in found.events["prompt"][0]]


HISTORIES = {
    "LangChain messages": [{"type": "human", "content": BEFORE[0][1]}, {"type": "ai", "content": BEFORE[1][1]}],
    "OpenAI messages": [{"role": role, "content": text} for role, text in BEFORE],
    "pairs of question and answer": [[BEFORE[0][1], BEFORE[1][1]]],
    "role and text": [["human", BEFORE[0][1]], ["ai", BEFORE[1][1]]],
    "text with speakers": f"Human: {BEFORE[0][1]}\nAI: {BEFORE[1][1]}",
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("key", ["chat_history", "history", "messages", "chatHistory", "prior_turns", "Dialog History"])
def test_earlier_turns_beside_the_question_go_before_it(tmp_path: Path, key: str, history: object):
    asked = "question" if key == "messages" else "input"
    found = langsmith(tmp_path, {asked: "And building 2?", key: history})
    assert turns(found) == [*BEFORE, ("user", "And building 2?")]


def test_a_history_that_holds_the_question_already_holds_it_once(tmp_path: Path):
    history = [{"role": role, "content": text} for role, text in [*BEFORE, ("user", "And building 2?")]]
    assert turns(langsmith(tmp_path, {"input": "And building 2?", "chat_history": history})) == [
        *BEFORE,
        ("user", "And building 2?"),
    ]


def test_instructions_beside_the_question_are_a_system_turn(tmp_path: Path):
    found = langsmith(tmp_path, {"question": "And building 2?", "system_prompt": "Be brief.", "language": "en"})
    assert turns(found) == [("system", "Be brief."), ("user", "And building 2?")]


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"context": "MANUAL PAGE 1: hold it."}, "context"),
        ({"documents": [{"page_content": "hold it"}]}, "documents"),
        ({"style_guide": "Write in rhymes."}, "style_guide"),
        ({"images": ["iVBOR"]}, "images"),
        ({"chat_history": "they talked about pumps"}, "chat_history"),
        ({"examples": [{"q": "What is it?", "a": "It is a pump."}]}, "examples"),
        ({"intermediate_steps": [[{"log": "calling the search tool"}, "nothing found"]]}, "intermediate_steps"),
        ({"imageUrl": "https://example.com/x.png"}, "imageUrl"),
        ({"chat_history": [["Hi there", "Hello you"]], "memory": "AI: something else was said"}, "memory"),
    ],
)
def test_text_the_turns_do_not_hold_puts_the_row_aside(tmp_path: Path, beside: dict[str, object], named: str):
    found = langsmith(tmp_path, {"question": "And building 2?", **beside})
    assert found.events.height == 0 and f"{named}`" in found.quarantined["reason"][0]


def test_settings_of_the_call_are_no_words_that_the_model_saw(tmp_path: Path):
    beside = {"session_id": "a b", "metadata": {"note": "for our eyes only"}, "temperature": 0.2, "userLocale": "en GB"}
    assert turns(langsmith(tmp_path, {"question": "And building 2?", **beside})) == [("user", "And building 2?")]


def test_context_that_stands_in_the_prompt_is_no_loss(tmp_path: Path):
    messages = [{"role": "system", "content": "Use this: hold it."}, ASKED]
    assert len(turns(langsmith(tmp_path, {"messages": messages, "context": "hold it."}))) == 2


def test_annotation_tools_fields_beside_the_question(tmp_path: Path):
    record = {"id": "1", "responses": {"good": [{"value": "yes", "user_id": "u"}]}}
    fields = {"instruction": "And building 2?", "response": "Rinse."}
    told = read(tmp_path, [record | {"fields": fields | {"system_prompt": "Be brief."}}])
    assert turns(told) == [("system", "Be brief."), ("user", "And building 2?")]
    aside = read(tmp_path, [record | {"fields": fields | {"context": "MANUAL PAGE 1"}}])
    assert "`context`" in aside.quarantined["reason"][0]


@pytest.mark.parametrize(
    "answer",
    [
        {"messages": [{"role": "assistant", "content": "<think>SECRET</think>\nRinse."}]},
        {"answer": "<think>SECRET\n</think>\n\nRinse."},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "SECRET"}, {"type": "text", "text": "Rinse."}],
        },
        {"role": "model", "parts": [{"text": "SECRET", "thought": True}, {"text": "Rinse."}]},
    ],
)
def test_reasoning_is_not_part_of_an_answer(tmp_path: Path, answer: object):
    assert langsmith(tmp_path, {"input": "Q?"}, answer).events["response_a"][0] == "Rinse."


def test_reasoning_is_taken_out_of_ones_own_columns_too(tmp_path: Path):
    rows = [
        {"q": "Q?", "a": "<think>SECRET</think>Rinse.", "up": 1},
        {"q": "Q?", "a": "<think>cut off SECRET", "up": 1},
    ]
    mapping = tmp_path / "m.yaml"
    mapping.write_text("fields: {prompt: q, response_a: a, thumb: up}")
    found = read(tmp_path, rows, mapping=mapping)
    assert found.events["response_a"].to_list() == ["Rinse."] and "SECRET" not in found.events["response_a"][0]
    assert "empty" in found.quarantined["reason"][0]


def test_a_mapping_names_instructions_and_history(tmp_path: Path):
    rows = [{"q": "And building 2?", "sys": "Be brief.", "past": HISTORIES["OpenAI messages"], "a": "Rinse.", "up": 1}]
    mapping = tmp_path / "m.yaml"
    mapping.write_text("fields: {prompt: q, system: sys, history: past, response_a: a, thumb: up}")
    assert turns(read(tmp_path, rows, mapping=mapping)) == [
        ("system", "Be brief."),
        *BEFORE,
        ("user", "And building 2?"),
    ]


def langfuse(folder: Path, *observations: dict[str, object], **score: object) -> ImportResult:
    row = {"id": "s1", "name": "thumbs", "value": 1, "dataType": "BOOLEAN", "traceId": "t1", **score}
    return read(folder, [row], observations)


def test_of_several_roots_of_one_trace_none_is_taken_for_the_answer(tmp_path: Path):
    root = {"traceId": "t1", "parentObservationId": None, "input": "Q1?"}
    one, two = root | {"id": "o1", "output": "One."}, root | {"id": "o2", "output": "Two."}
    several = langfuse(tmp_path, one, two)
    assert "several outermost observations" in several.quarantined["reason"][0]
    assert langfuse(tmp_path, one, two, observationId="o2").events["response_a"][0] == "Two."
    assert langfuse(tmp_path, root | {"id": "o0", "output": None}, two).events["response_a"][0] == "Two."
    trace = {"id": "t1", "input": "Q1?", "output": "The trace's."}
    assert langfuse(tmp_path, one, two, trace).events["response_a"][0] == "The trace's."


def responses(folder: Path, *logged: dict[str, object]) -> ImportResult:
    return read(folder, [{"response_id": logged[-1]["id"], "rating": "up"}], logged)


SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "GOOD answer"}]}


def test_a_log_of_the_responses_api(tmp_path: Path):
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "SECRET"}]}
    first = {"id": "r1", "instructions": "Be long", "input": BEFORE[0][1], "output": [thought, SAID]}
    found = responses(tmp_path, first | {"instructions": "Be brief"})
    assert turns(found) == [("system", "Be brief"), BEFORE[0]]
    assert found.events["response_a"].to_list() == ["GOOD answer"]
    asked = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And building 2?"}]}]
    second = {"id": "r2", "previous_response_id": "r1", "instructions": "Be brief", "input": asked, "output": [SAID]}
    cut = second | {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    found = responses(tmp_path, first, cut)
    assert turns(found) == [
        ("system", "Be brief"),
        BEFORE[0],
        ("assistant", "GOOD answer"),
        ("user", "And building 2?"),
    ]
    assert found.events["finish_reason_a"].to_list() == ["length"]
    assert "is not in other.jsonl" in responses(tmp_path, second).quarantined["reason"][0]
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    for broken in (first | {"output": [call, SAID]}, first | {"input": [asked[0], call]}, first | {"tools": [{}]}):
        assert responses(tmp_path, broken).events.height == 0
    picture = [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]
    assert "input_image" in responses(tmp_path, first | {"input": picture}).quarantined["reason"][0]


def test_a_log_of_anthropics_messages(tmp_path: Path):
    request = {"system": "Be brief", "messages": [ASKED]}
    content = [{"type": "thinking", "thinking": "SECRET"}, {"type": "text", "text": "GOOD"}]
    response = {"id": "msg_1", "content": content, "stop_reason": "max_tokens"}
    found = read(
        tmp_path, [{"request_id": "a", "rating": "up"}], [{"request_id": "a", "request": request, "response": response}]
    )
    assert turns(found) == [("system", "Be brief"), ("user", "And building 2?")]
    assert found.events["response_a"][0] == "GOOD" and found.events["finish_reason_a"][0] == "length"


BESIDE = {
    "system_prompt": "You speak like a pirate.",
    "chat_history": [{"role": "user", "content": "my name is zed"}, {"role": "assistant", "content": "hello zed"}],
    "retrieved_context": "Zones one to nine cost eleven pounds.",
    "images": ["https://x.example/picture.png"],
    "tools": [{"type": "function", "function": {"name": "look_up"}}],
}
HAS_NO_COLUMNS = {"oasst", "open_webui"}  # a tree of messages; a chat's snapshot


@pytest.mark.parametrize("name", sorted(GOOD.keys() - HAS_NO_COLUMNS - COMPANIONS.keys()))
def test_in_every_format_a_column_beside_the_question_is_read_or_puts_the_row_aside(tmp_path: Path, name: str):
    assert read(tmp_path, [GOOD[name]], format=name).quarantined.height == (name == "prism")  # one answer of two
    for key, value in BESIDE.items():
        row = dict(GOOD[name])
        inner = {"label_studio": "data", "argilla": "fields"}.get(name)
        changed = row | {inner: row[inner] | {key: value}} if inner else row | {key: value}  # type: ignore[operator]
        found = read(tmp_path, [changed], format=name)
        told = json.dumps(found.events["prompt"].to_list())
        assert found.events.height == 0 or any(word in told for word in ("pirate", "zed", "look_up")), key


def test_names_of_labels_are_no_context(tmp_path: Path):
    row = GOOD["helpsteer2"] | {"context_id": "a b", "chat_id": "c", "image_url": "", "tools": [], "documents": None}
    assert read(tmp_path, [row], format="helpsteer2").events.height == 1


def answered(folder: Path, output: object, asked: object = "q") -> ImportResult:
    score = {"id": "s", "traceId": "t", "name": "thumbs", "value": 1, "dataType": "BOOLEAN"}
    return read(folder, [score], [{"id": "t", "input": asked, "output": output}])


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def says(role: str, text: str) -> dict[str, object]:
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    "output",
    [
        [says("assistant", "one"), says("assistant", "two")],
        {"messages": [says("user", "q"), says("assistant", "one"), says("user", "on"), says("assistant", "two")]},
        {"choices": [{"message": says("assistant", "one")}, {"message": says("assistant", "two")}]},
        {"generations": [[{"text": "one"}, {"text": "two"}]]},
        {"answer": ["one", "two"]},
        [says("user", "q"), {"role": "assistant", "tool_calls": [CALL]}, says("tool", "4"), says("assistant", "one")],
    ],
)
def test_of_several_answers_none_is_taken_for_the_one_that_was_judged(tmp_path: Path, output: object):
    found = answered(tmp_path, output)
    assert found.events.height == 0 and found.quarantined.height == 1


@pytest.mark.parametrize(
    "output",
    [
        [says("user", "q"), says("assistant", "one two")],
        {"messages": [says("system", "s"), says("user", "q"), says("assistant", "one two")]},
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "one "}, {"type": "text", "text": "two"}],
        {"content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
        {"generations": [[{"text": "one two"}]]},
        ["one two"],
    ],
)
def test_an_answer_in_any_of_its_forms(tmp_path: Path, output: object):
    assert answered(tmp_path, output).events["response_a"].to_list() == ["one two"]


def open_webui(folder: Path, chat: dict[str, object], **answer: object) -> ImportResult:
    row = json.loads(json.dumps(GOOD["open_webui"]))
    inner = row["snapshot"]["chat"]["chat"]
    inner |= chat
    inner["history"]["messages"]["a"] |= answer
    return read(folder, [row], format="open_webui")


def test_open_webui_knows_the_chats_system_prompt_and_what_was_retrieved(tmp_path: Path):
    told = open_webui(tmp_path, {"params": {"system": "Be brief."}})
    assert turns(told) == [("system", "Be brief."), ("user", "q")]
    assert turns(open_webui(tmp_path, {"params": {}})) == [("user", "q")]
    for name in ("sources", "citations"):
        found = open_webui(tmp_path, {}, **{name: [{"source": {"name": "doc"}, "document": ["The fee is 3."]}]})
        assert found.events.height == 0 and "retrieved text" in found.quarantined["reason"][0]
