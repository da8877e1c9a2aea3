"""What is trained is what sampling produces: over template families and tokenizers of the kinds in use."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.conf.schema import DataConfig
from raylign.data.encoder import Encoder
from raylign.data.prompts import load_prompts
from raylign.data.row_fields import EarlierTurnDiffers, RowError, turn_fields
from raylign.data.row_kinds import load_rows
from raylign.data.templates import ChatTemplate
from raylign.data.texts import load_conversations
from raylign.data.types import Message, RowKind
from transformers import PreTrainedTokenizerFast

from tests.unit.data.chat_families import _C, _CALLS, _IM, _TOOLS, FAMILIES, TOKENIZERS, tokenizer

CASES = [(kind, family) for kind in TOKENIZERS for family in FAMILIES]
ANSWERS = ("Paris.", "\n\nParis.", "    def f():\n        pass", " Paris", "é 你好\n", "42")


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_an_answer_is_the_sampled_prompt_then_its_own_words_and_one_end_token(kind: str, family: str):
    template, eos = FAMILIES[family]
    made = tokenizer(kind, template, eos)
    encoder = Encoder(made)
    prompt = encoder.encode_prompt("Name a city.")
    for answer in ANSWERS:
        got = encoder.encode_answer("Name a city.", answer)
        ids = list(got.token_ids)
        assert tuple(ids[: got.prompt_tokens]) == prompt
        assert [encoder.is_end(i) for i in ids[got.prompt_tokens :]].count(True) == 1 and encoder.is_end(ids[-1])
        text = made.decode(ids[:-1])
        opening = made.decode(list(prompt))
        assert text.startswith(opening) and answer in text[len(opening) :]
        around = text[len(opening) :].replace(answer, "", 1).strip()
        assert around in ("", "<think>\n\n</think>", "<|channel|>final<|message|>")
        cut = encoder.encode_answer("Name a city.", answer, finished=False)
        assert cut.token_ids == got.token_ids[:-1]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CASES), st.text(alphabet="aé \n.:你1'", min_size=1, max_size=12).filter(str.strip))
def test_any_answer_reads_back_after_the_prompt(case: tuple[str, str], answer: str):
    kind, family = case
    made = tokenizer(kind, *FAMILIES[family])
    encoder = Encoder(made)
    got = encoder.encode_answer("Why?", answer)
    prompt = encoder.encode_prompt("Why?")
    assert got.token_ids[: len(prompt)] == prompt
    assert answer in made.decode(list(got.token_ids)).removeprefix(made.decode(list(prompt)))


APART = {  # families whose earlier answers are not as they are sampled, and how
    "glm 4": "no end token after an earlier answer",
    "no end token": "no end token after an earlier answer",
    "harmony": "no end token after an earlier answer",  # none that the engine stops at
    "qwen3 (thinking)": "rewrites earlier answers",
}


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_conversations_are_trained_as_they_are_sampled_turn_by_turn_where_a_template_rewrites_them(
    kind: str, family: str, tmp_path: Path
):
    made = tokenizer(kind, *FAMILIES[family])
    encoder = Encoder(made)
    rows = [{"role": r, "content": c} for r, c in (("user", "Q1?"), ("assistant", "A1."), ("user", "Q2?"))]
    rows += [{"role": "assistant", "content": "A2.", "weight": 0.5}]
    turns = tuple(Message(str(r["role"]), str(r["content"])) for r in rows)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": rows}) + "\n" + json.dumps({"prompt": rows[:1], "completion": rows[1:]}))
    loaded = load_conversations(str(file), DataConfig(), made)
    assert (loaded.report.kept, loaded.report.bad) == (2, 0)
    assert len(loaded) == (4 if family in APART else 2)
    alone = [encoder.encode_answer(turns[:1], "A1."), encoder.encode_answer(turns[:3], "A2.")]
    if family in APART:
        assert [t.token_ids for t in loaded.texts] == [a.token_ids for a in alone] * 2
        assert [[w > 0 for w in t.weights] for t in loaded.texts] == [a.mask for a in alone] * 2
        assert [max(t.weights) for t in loaded.texts] == [1, 0.5, 1, 1]
        return
    text = loaded.texts[0]
    trained = [i for i, w in zip(text.token_ids, text.weights, strict=True) if w]
    sampled = [list(a.token_ids[a.prompt_tokens :]) for a in alone]
    assert "".join(made.decode(trained).split()) == "".join(made.decode([i for each in sampled for i in each]).split())


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_in_several_turns_only_the_assistants_words_are_trained(kind: str, family: str):
    made = tokenizer(kind, *FAMILIES[family])
    encoder = Encoder(made)
    turns = (Message("user", "Q1?"), Message("assistant", "A1."), Message("user", "Q2?"), Message("assistant", "A2."))
    if family in APART:
        with pytest.raises(EarlierTurnDiffers, match=APART[family]):
            encoder.encode_conversation(turns, (0, 1, 0, 1))
        return
    text = encoder.encode_conversation(turns, (0, 1, 0, 1))
    mask = [w > 0 for w in text.weights]
    ends = [encoder.is_end(i) for i, trained in zip(text.token_ids, mask, strict=True) if trained]
    words = made.decode([i for i, trained in zip(text.token_ids, mask, strict=True) if trained])
    assert "A1." in words and "A2." in words and "Q" not in words and ends.count(True) == 2 and ends[-1]
    first = encoder.encode_prompt(turns[:1])
    assert text.token_ids[: len(first)] == first
    last = encoder.encode_answer(turns[:3], "A2.")
    answer = encoder.encode_answer(turns[:1], turns[1:])
    assert answer.mask == mask and answer.token_ids == text.token_ids
    assert last.token_ids[-1] == text.token_ids[-1]


REPEATED = (
    ("MASKED", "NOT MASKED", "NOT MASKED", "MASKED"),  # axolotl #2089
    ("assistant", "a", "a", "user"),
    ("ASSISTANT: yes", "ASSISTANT: yes", "[/INST] So.", "So."),
)


@pytest.mark.slow
@pytest.mark.parametrize("words", REPEATED)
@pytest.mark.parametrize(("kind", "family"), [case for case in CASES if case[1] not in APART])
def test_answers_are_found_where_they_stand_however_often_their_words_occur(
    kind: str, family: str, words: tuple[str, str, str, str]
):
    made = tokenizer(kind, *FAMILIES[family])
    encoder = Encoder(made)
    roles = ("user", "assistant", "user", "assistant")
    turns = tuple(Message(role, content) for role, content in zip(roles, words, strict=True))
    text = encoder.encode_conversation(turns, (0, 1, 0, 1))
    runs = [i for i in range(1, len(text.weights)) if (text.weights[i] > 0) and not text.weights[i - 1] > 0]
    assert len(runs) == 2
    for start, turn in zip(runs, (1, 3), strict=True):
        before, opening = (
            made.decode(list(ids)) for ids in (text.token_ids[:start], encoder.encode_prompt(turns[:turn]))
        )
        assert "".join(before.split()).startswith("".join(opening.split()))  # of an earlier answer the sampled tokens
        end = next(i for i in range(start, len(text.token_ids)) if encoder.is_end(text.token_ids[i]))
        assert words[turn] in made.decode(list(text.token_ids[start:end]))


@pytest.mark.parametrize("family", ["chatml", "zephyr", "granite"])
def test_an_end_token_that_is_the_padding_token_too_is_trained(family: str):
    made = tokenizer("gpt2", *FAMILIES[family])
    made.pad_token = made.eos_token
    got = Encoder(made).encode_answer("Why?", "So.")
    assert made.decode(list(got.token_ids[got.prompt_tokens :])) == f"So.{made.eos_token}"
    assert got.mask[-1]


def test_what_stands_between_an_end_token_and_a_tools_answer_is_kept():
    made = tokenizer("qwen", *FAMILIES["qwen2 (tools)"])
    calls = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"city": "Oslo"}}}]})
    turns = (
        Message("user", "Weather?"),
        Message("assistant", "Wait.", calls),
        Message("tool", "-4"),
        Message("assistant", "It is -4."),
    )
    text = Encoder(made).encode_conversation(turns, (0, 1, 0, 1))
    rendered = ChatTemplate(made, None).render(turns, "", open_answer=False)
    assert made.decode(list(text.token_ids)) + "\n" == rendered
    assert text.token_ids.count(made.convert_tokens_to_ids("<|im_end|>")) == 4


@pytest.mark.parametrize("kind", ["gpt2", "legacy"])
@pytest.mark.parametrize(
    ("shown", "spaces", "invented"),
    [
        ("m.content.rstrip()", "", ""),
        ("m.content.lstrip()", "", ""),
        ("m.content | trim", "", ""),
        ("m.content | replace('\\n', '\\n  ')", "", ""),
        ("m.content", "  ", ""),  # an opening that ends in more space than the template then writes
        ("' ' + m.content | trim", "", " "),  # the template's own space, as every answer has it
    ],
)
def test_white_space_that_a_template_changes_is_trained_once(kind: str, shown: str, spaces: str, invented: str):
    """A template that strips one end, or indents, doubled an answer's leading blank lines and indentation."""
    template = f"{{% for m in messages %}}<|{{{{ m.role }}}}|>{{{{ {shown} }}}}<|end|>{{% endfor %}}"
    made = tokenizer(kind, template + "{% if add_generation_prompt %}<|assistant|>" + spaces + "{% endif %}", "</s>")
    encoder = Encoder(made)
    prompt = list(encoder.encode_prompt("Why?"))
    for answer in ("\n\n  Paris\n", "    x = 1\n    y", "  So.", "So.\n", "So."):
        got = list(encoder.encode_answer("Why?", answer).token_ids)
        assert got[: len(prompt)] == prompt
        indent = "  " if "replace" in shown else ""  # after an answer's own line break the template begins a line
        allowed = {own + answer + after for own in ("", invented) for after in ("", indent)}
        assert made.decode(got[:-1]).removeprefix(made.decode(prompt)) in allowed and encoder.is_end(got[-1])


def test_a_template_that_closes_the_conversation_ends_the_answer_at_its_first_end_token():
    made = tokenizer("gpt2", *FAMILIES["phi 3"])
    got = Encoder(made).encode_answer("What is 2+2?", "It is 4.")
    assert made.decode(list(got.token_ids[got.prompt_tokens :])) == "It is 4.<|end|>"


def test_the_ends_listed_in_generation_config_are_ends(tmp_path: Path):
    made = tokenizer("gpt2", *FAMILIES["glm 4"])
    listed = [made.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|user|>")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    made.name_or_path = str(tmp_path)
    turns = (Message("user", "Q1?"), Message("assistant", "A1."), Message("user", "Q2?"), Message("assistant", "A2."))
    text = Encoder(made).encode_conversation(turns, (0, 1, 0, 1))
    trained = [i for i, w in zip(text.token_ids, text.weights, strict=True) if w]
    assert made.decode(trained) == "A1.<|user|>A2.<|endoftext|>"


def test_an_answer_that_holds_the_end_token_is_refused():
    with pytest.raises(RowError, match="holds an end token"):
        Encoder(tokenizer("qwen", *FAMILIES["chatml"])).encode_answer("a", "b<|im_end|>c")


def test_a_template_that_opens_a_thought_needs_answers_that_close_it():
    template = FAMILIES["chatml"][0].replace(
        "<|im_start|>assistant\n{% else", "<|im_start|>assistant\n<think>\n{% else"
    )
    made = tokenizer("qwen", template, "<|im_end|>")
    encoder = Encoder(made)
    with pytest.raises(RowError, match="does not close it"):
        encoder.encode_answer("a", "b")
    got = encoder.encode_answer("a", "<think>\nhm</think>b")
    assert made.decode(list(got.token_ids[got.prompt_tokens :])) == "hm</think>b<|im_end|>"


# ruff: noqa: E501
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ASK = {"role": "user", "content": "Weather in Oslo?"}
FIELDS = [
    ("tool_calls", {"messages": [ASK, {"role": "assistant", "content": "One moment.", "tool_calls": [CALL]},
                                 {"role": "tool", "content": "-4 C"}, {"role": "assistant", "content": "It is -4 C."}]}),
    ("tools", {"messages": [ASK, {"role": "assistant", "content": "I cannot know."}], "tools": [CALL]}),
    ("reasoning_content", {"messages": [ASK, {"role": "assistant", "content": "51", "reasoning_content": "17*3 = 51"}]}),
    ("enable_thinking", {"messages": [ASK, {"role": "assistant", "content": "51"}],
                         "chat_template_kwargs": {"enable_thinking": False}}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "row"), FIELDS)
def test_a_field_reaches_the_template_or_the_row_is_refused_by_its_name(
    field: str, row: dict[str, object], tmp_path: Path
):
    good = {"messages": [ASK, {"role": "assistant", "content": "Cold."}]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in (row, good)))
    config = DataConfig(max_bad_fraction=0.5)
    plain = load_conversations(str(file), config, tokenizer("qwen", *FAMILIES["chatml"]))
    assert plain.report.bad == 1 and f"`{field}`" in plain.report.examples[0].reason
    made = tokenizer("qwen", *FAMILIES["qwen3 (thinking)"])
    using = load_conversations(str(file), config, made)
    assert using.report.bad == 0
    row_texts = using.texts[:-1]  # one for each trained turn
    whole = made.decode(list(row_texts[-1].token_ids))
    trained = made.decode([i for t in row_texts for i, w in zip(t.token_ids, t.weights, strict=True) if w])
    match field:
        case "tool_calls":
            assert '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|im_end|>' in trained
            assert "-4 C<|im_end|>\n" in whole and "tool" not in trained
        case "tools":
            assert "weather" in whole and "weather" not in trained
        case "reasoning_content":
            assert trained == "<think>\n17*3 = 51\n</think>\n\n51<|im_end|>"
        case "enable_thinking":
            assert trained == "51<|im_end|>" and whole.endswith("<think>\n\n</think>\n\n51<|im_end|>")


ARGUMENTS = {  # how a template writes the arguments of a call, and what is right for it
    "json": ("{{ c.function.arguments | tojson }}", '{"city": "Oslo"}'),
    "joined as text": ("{{ '<' + c.function.arguments + '>' }}", '<{"city": "Oslo"}>'),
    "printed": ("{{ c.function.arguments }}", '{"city": "Oslo"}'),
    "by name": ("{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}", "<city>Oslo"),
    "either": ("{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}",
               '{"city": "Oslo"}'),
}  # fmt: skip


@pytest.mark.parametrize("given", [{"city": "Oslo"}, '{"city": "Oslo"}'])
@pytest.mark.parametrize("form", ARGUMENTS)
def test_the_arguments_of_a_call_are_written_once_whatever_form_they_come_in(form: str, given: object):
    writes, right = ARGUMENTS[form]
    template = FAMILIES["qwen2 (tools)"][0].replace("{{ c.function | tojson }}", writes)
    call = {"type": "function", "function": {"name": "weather", "arguments": given}}
    turn = Message("assistant", "One moment.", turn_fields({"role": "assistant", "tool_calls": [call]}))
    got = Encoder(made := tokenizer("qwen", template, "<|im_end|>")).encode_answer((Message("user", "a"),), (turn,))
    assert made.decode(list(got.token_ids)).endswith(f"One moment.<call>{right}</call><|im_end|>")


KINDS: list[tuple[RowKind | None, str]] = [
    (RowKind.CONVERSATIONS, "messages"), (RowKind.CONVERSATIONS, "completion"), (RowKind.PAIRS, "chosen"),
    (RowKind.PAIRS, "rejected"), (RowKind.PAIRS, "prompt"), (RowKind.JUDGED, "completion"), (RowKind.JUDGED, "prompt"),
    (None, "prompt"), (None, "messages"),
]  # fmt: skip
"""Kind of row (None: prompts of an online run) and the column that holds the turn with fields."""


def kind_row(column: str, kind: RowKind | None, turn: dict[str, object]) -> dict[str, object]:
    """A row with `turn` in `column`: as an answer, or as an earlier turn of the question."""
    answer = [{"role": "assistant", "content": "Fine."}]
    asked = [ASK, turn, ASK] if column == "prompt" or kind is None else [ASK]
    said = [turn] if column in ("completion", "chosen", "messages") else answer
    if kind is None:
        return {column: asked}
    if kind is RowKind.CONVERSATIONS and column == "messages":
        return {"messages": [ASK, turn]}
    if kind is RowKind.PAIRS:
        other = [turn] if column == "rejected" else [{"role": "assistant", "content": "No."}]
        return {"prompt": asked, "chosen": said, "rejected": other}
    return {"prompt": asked, "completion": said} | ({"label": True} if kind is RowKind.JUDGED else {})


def read_kind(kind: RowKind | None, rows: list[dict[str, object]], made: PreTrainedTokenizerFast, path: Path):
    """The report of the rows, and the token ids of all of them."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = DataConfig(max_bad_fraction=0.9)
    if kind is None:
        loaded = load_prompts(str(path), config, made)
        return loaded.report, [list(p.token_ids) for p in loaded.prompts]
    read = load_rows(kind, str(path), config, made)
    return read.report, [list(ids) for ids, _ in read.sequences()]


SHOWN: dict[str, tuple[dict[str, object], str]] = {
    "tool_calls": ({"tool_calls": [CALL]}, '"city": "Oslo"'),
    "reasoning_content": ({"reasoning_content": "hm"}, "hm"),
    "thinking": ({"thinking": "hm"}, "hm"),
}
ALL_FIELDS = (
    _TOOLS + "{% if style is defined %}[{{ style }}]{% endif %}{% for m in messages %}" + _IM + "{{ m.reasoning_content or '' }}{{ m.thinking or '' }}{{ m.content }}"
    + _CALLS + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # fmt: skip


@pytest.mark.parametrize(("kind", "column"), KINDS)
def test_fields_of_turns_reach_the_template_or_quarantine_in_every_kind_of_row(
    kind: RowKind | None, column: str, tmp_path: Path
):
    plain, using = tokenizer("qwen", *FAMILIES["chatml"]), tokenizer("qwen", ALL_FIELDS, "<|im_end|>")
    fine = kind_row(column, kind, {"role": "assistant", "content": "Well."})
    good = [fine | {"label": False}, fine] if kind is RowKind.JUDGED else [fine]
    for name, (fields, shown) in SHOWN.items():
        row = kind_row(column, kind, {"role": "assistant", "content": "Good.", **fields})
        report, _ = read_kind(kind, [row, *good], plain, tmp_path / "rows.jsonl")
        assert report.bad == 1 and f"`{name}` of the assistant turn" in report.examples[0].reason
        report, ids = read_kind(kind, [row, *good], using, tmp_path / "rows.jsonl")
        assert report.bad == 0 and any(shown in using.decode(each) for each in ids)
    broken = {"role": "assistant", "content": "Good.", "tool_calls": [{"function": {"name": "f", "arguments": "{a"}}]}
    report, _ = read_kind(kind, [kind_row(column, kind, broken), *good], using, tmp_path / "rows.jsonl")
    assert report.bad == 1 and "the arguments of f are not valid JSON" in report.examples[0].reason
    picture = {"role": "assistant", "content": [{"type": "image", "url": "x"}]}
    report, _ = read_kind(kind, [kind_row(column, kind, picture), *good], using, tmp_path / "rows.jsonl")
    assert report.bad == 1 and "only text is supported" in report.examples[0].reason


@pytest.mark.parametrize(("kind", "column"), KINDS)
def test_fields_of_rows_reach_the_template_or_quarantine_in_every_kind_of_row(
    kind: RowKind | None, column: str, tmp_path: Path
):
    plain, using = tokenizer("qwen", *FAMILIES["chatml"]), tokenizer("qwen", ALL_FIELDS, "<|im_end|>")
    fine = kind_row(column, kind, {"role": "assistant", "content": "Well."})
    good = [fine | {"label": False}, fine] if kind is RowKind.JUDGED else [fine]
    for name, fields, shown in (
        ("tools", {"tools": [CALL]}, "weather"),
        ("tools", {"tools": json.dumps([CALL])}, "weather"),
        ("style", {"chat_template_kwargs": {"style": "brief"}}, "[brief]"),
    ):
        report, _ = read_kind(kind, [fine | fields, *good], plain, tmp_path / "rows.jsonl")
        assert report.bad == 1 and f"`{name}`" in report.examples[0].reason
        report, ids = read_kind(kind, [fine | fields, *good], using, tmp_path / "rows.jsonl")
        assert report.bad == 0 and any(shown in using.decode(each) for each in ids)
    for name in ("images", "functions", "system", "audio"):
        report, _ = read_kind(kind, [fine | {name: ["x"]}, *good], using, tmp_path / "rows.jsonl")
        assert report.bad == 1 and f"column `{name}` would be lost" in report.examples[0].reason


def test_keys_that_a_table_made_up_are_not_rendered(tmp_path: Path):
    """Arrow gives every object the keys of all; only those that the row had are its own."""
    other = {"type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}
    rows = [{"messages": [ASK, {"role": "assistant", "content": "Hm.", "tool_calls": [c]}]} for c in (CALL, other)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    made = tokenizer("qwen", *FAMILIES["qwen2 (tools)"])
    for name in ("rows.parquet", "saved"):
        texts = [
            made.decode(list(t.token_ids)) for t in load_conversations(str(tmp_path / name), DataConfig(), made).texts
        ]
        assert '"arguments": {"city": "Oslo"}}' in texts[0] and '"arguments": {"a": 1}}' in texts[1]


@pytest.mark.parametrize("column", ["images", "functions", "system"])
def test_columns_that_cannot_be_passed_on_are_named(column: str, tmp_path: Path):
    rows = [{"prompt": "a", "completion": "b", column: ["x"]}, {"prompt": "a", "completion": "b"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = tokenizer("gpt2", *FAMILIES["chatml"])
    report = load_conversations(str(file), DataConfig(max_bad_fraction=0.5), made).report
    assert report.bad == 1 and f"`{column}`" in report.examples[0].reason


def test_a_template_prints_the_date_of_the_run_and_its_rows_stay_the_same(tmp_path: Path):
    made = tokenizer("gpt2", *FAMILIES["llama 3.2 (date)"])
    template = ChatTemplate(made, date(2031, 2, 3))
    assert "Today: 03 Feb 2031" in template.render((Message("user", "a"),), "", open_answer=True)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n')
    first, again, later = (
        load_prompts(str(file), DataConfig(), made, today=date(2031, 2, day)).digest for day in (3, 3, 4)
    )
    assert first == again != later
    today = Encoder(made).encode_prompt("a")
    assert f"Today: {date.today():%d %b %Y}" in made.decode(list(today))


_BLOCKS = (
    "{% for m in messages %}{% if m.thinking %}<|assistant|>{{ m.thinking }}<|end|>{% endif %}"
    "{% if m.content %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}"
    "{% for c in m.tool_calls or [] %}<|assistant|>{{ c.function | tojson }}<|end|>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Thought, words and every call as an answer of its own: sampling stops after the first."""
_ROLES = (
    "{% for m in messages if m.role in ('user', 'assistant') %}"
    + _IM
    + _C
    + "<|im_end|>\n{% endfor %}"
    + ("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
)
_ONE = (
    "{% for m in messages %}"
    + _IM
    + "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}"
    + _C
    + "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_OTHER = {"type": "function", "function": {"name": "clock", "arguments": {"city": "Oslo"}}}
_HERE = {"role": "assistant", "content": "Cold."}
LEFT_OUT: list[tuple[str, str, list[dict[str, object]], str]] = [
    ("calls after the end", _BLOCKS, [ASK, {**_HERE, "tool_calls": [CALL]}], "before it writes `tool_calls`"),
    ("second call after the end", _BLOCKS, [ASK, {**_HERE, "content": "", "tool_calls": [CALL, _OTHER]}],
     "before it writes call 2 of `tool_calls`"),
    ("calls after the end, then turns", _BLOCKS, [ASK, {**_HERE, "tool_calls": [CALL]}, ASK, _HERE],
     "before it writes `tool_calls`"),
    ("words after the thought's end", _BLOCKS, [ASK, {**_HERE, "thinking": "Hm."}], "before it writes `content`"),
    ("words beside a call", _ONE, [ASK, {**_HERE, "tool_calls": [CALL]}], "`content` of the assistant turn 2"),
    ("second call", _ONE, [ASK, {**_HERE, "content": "", "tool_calls": [CALL, _OTHER]}], "call 2 of `tool_calls`"),
    ("system turn", _ROLES, [{"role": "system", "content": "a"}, ASK, _HERE], "`content` of the system turn 1"),
    ("tool turn", _ROLES, [ASK, _HERE, {"role": "tool", "content": "-4"}, _HERE], "`content` of the tool turn 3"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "turns", "said"), [case[1:] for case in LEFT_OUT], ids=[c[0] for c in LEFT_OUT])
def test_a_part_of_a_turn_that_is_not_trained_or_read_is_refused_by_name(
    template: str, turns: list[dict[str, object]], said: str, tmp_path: Path
):
    made = tokenizer("gpt2", template, "<|end|>" if template is _BLOCKS else "<|im_end|>")
    bad = {"messages": turns}
    good = {"messages": [ASK, _HERE]}
    split = {"prompt": turns[:-1], "completion": turns[-1:]}
    only_read = turns[-1] == _HERE and said.startswith("before")  # in a question it stands where the template has it
    for rows in ([bad, good], *([] if only_read else [[split, good]])):
        report, _ = read_kind(RowKind.CONVERSATIONS, rows, made, tmp_path / "rows.jsonl")
        assert report.bad == 1 and said in report.examples[0].reason
    if turns[-1] == _HERE and said.startswith("`content`"):  # a prompt loses it as well
        report, _ = read_kind(None, [{"prompt": turns[:-1]}, {"prompt": [ASK]}], made, tmp_path / "rows.jsonl")
        assert report.bad == 1 and said in report.examples[0].reason


def test_a_system_turn_that_is_printed_with_the_last_question_is_not_taken_for_lost():
    """Mistral's older templates."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{% if loop.last and messages[0].role == 'system' %}"
        "{{ messages[0].content }}: {% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %}{{ m.content }}"
        "</s>{% endif %}{% endfor %}"
    )
    made = tokenizer("gpt2", template, "</s>")
    ids = Encoder(made).encode_prompt((Message("system", "Brief"), Message("user", "Why?")))
    assert made.decode(list(ids)) == "[INST]Brief: Why?[/INST]"


def test_an_answer_that_a_template_rewrites_is_not_looked_for_in_the_end_token():
    """`d` stands in `<|im_end|>`, and `D` is what the template writes."""
    template = FAMILIES["chatml"][0].replace("{{ m.content }}", "{{ m.content | upper }}")
    made = tokenizer("gpt2", template, "<|im_end|>")
    encoder = Encoder(made)
    got = encoder.encode_answer("a", "d")
    assert made.decode(list(got.token_ids[got.prompt_tokens :])) == "d<|im_end|>"
    assert not encoder.is_end(made.convert_tokens_to_ids("<|im_start|>"))


@pytest.mark.parametrize("kind", [RowKind.CONVERSATIONS, RowKind.PAIRS, RowKind.JUDGED])
def test_columns_that_are_fields_of_an_answer_and_a_begun_answer_are_refused(kind: RowKind, tmp_path: Path):
    made = tokenizer("gpt2", *FAMILIES["chatml"])
    fine = kind_row("completion", kind, _HERE)
    good = [fine | {"label": False}, fine] if kind is RowKind.JUDGED else [fine]
    for name in ("reasoning_content", "thinking", "tool_calls", "system_prompt", "history", "image_url"):
        report, _ = read_kind(kind, [fine | {name: ["x"]}, *good], made, tmp_path / "rows.jsonl")
        assert report.bad == 1 and f"column `{name}` would be lost" in report.examples[0].reason
    begun = fine | {"prompt": [ASK, {"role": "assistant", "content": "It is"}]}
    report, _ = read_kind(kind, [begun, *good], made, tmp_path / "rows.jsonl")
    assert report.bad == 1 and "`prompt` ends with an assistant turn" in report.examples[0].reason
