"""Names and addresses by a model: a tiny one whose weights were set by hand knows some words and no others."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import torch
from raylign.app.cli import app, run_command
from raylign.app.commands.feedback_judge import judge_pairs
from raylign.app.commands.judge_open import Who
from raylign.conf.errors import UserError
from raylign.feedback.browse.shelf import open_shelf
from raylign.feedback.clean.entities import Span, Token, spans_of
from raylign.feedback.clean.entity_labels import Label, label_of, parse_labels
from raylign.feedback.clean.entity_model import load_entity_model
from raylign.feedback.clean.names import texts_without_names, without_names
from raylign.feedback.clean.personal_data import NOT_COVERED
from raylign.feedback.privacy import redactor_of
from raylign.feedback.settings import PrivacySettings
from raylign.feedback.source import Source
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from tests.unit.reward.json_server import Reply, serving

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "B-STREET", "I-STREET")
WORDS = {
    "Anna": "B-PER", "Kowal": "B-PER", "##ska": "O", "Nowak": "I-PER", "Zoë": "B-PER", "我": "O", "##是": "O",
    "##陈": "B-PER", "##伟": "I-PER", "。": "O",
    "rose": "B-PER", "Paris": "B-LOC", "Hauptstraße": "B-STREET", "12": "I-STREET", "7": "I-STREET",
}  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives each known piece of a word its label, whatever stands beside it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-ner"
    letters = [chr(code) for code in (*range(33, 127), *range(0xC0, 0x180))]
    pieces = list(dict.fromkeys(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters, *(f"##{x}" for x in letters))))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=512,
    ).save_pretrained(folder)  # fmt: skip
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=len(LABELS), num_hidden_layers=0, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=514, id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.bert.embeddings.LayerNorm.weight.fill_(1)
        model.classifier.weight.copy_(torch.eye(len(LABELS)))
        for piece, number in vocabulary.items():
            model.bert.embeddings.word_embeddings.weight[number, LABELS.index(WORDS.get(piece, "O"))] = 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def find(model_folder: Path) -> Callable:
    return load_entity_model(model_folder, {}).find


def marked(find: Callable, text: str) -> list[tuple[str, str]]:
    (spans,) = find([text])
    return [(text[span.start : span.end], span.kind) for span in spans]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ask Anna Nowak about it.", [("Anna Nowak", "NAME")]),
        ("Anna Anna", [("Anna", "NAME"), ("Anna", "NAME")]),  # B- begins another
        ("Mrs Kowalska called", [("Kowalska", "NAME")]),  # marked by its first piece alone
        ("🙂 naïve Zoë 🙂🙂 said", [("Zoë", "NAME")]),
        ("我是陈伟。", [("陈伟", "NAME")]),  # no spaces to end at
        ("She lives in Hauptstraße 12, Paris", [("Hauptstraße 12", "ADDRESS")]),  # Paris alone is no address
        ("Hauptstraße 12\u00a07", [("Hauptstraße 12\u00a07", "ADDRESS")]),
        ("nothing here", []),
        ("", []),
    ],
)
def test_whole_names_at_their_places(find, text: str, found: list[tuple[str, str]]):
    assert marked(find, text) == found


@pytest.mark.parametrize(
    "text",
    [
        "x = rose.petals + 12 * 7", "def rose(self): return rose_garden", "12 + 7 = 19", "7 * 12", "$12 \\cdot 7$",
        "import Anna.Nowak", "Anna::Nowak()", "`Anna`", "```python\nAnna = 1\nprint(Anna)\n```", "a[rose] @rose",
        "f'{Anna}'", "12", "version 12.7", "rose_1", "Anna=5", "Anna += 1",
    ],
)  # fmt: skip
def test_code_and_arithmetic_stay(find, text: str):
    assert marked(find, text) == []


def test_a_whole_name_in_a_comment_of_code_goes(find):
    assert marked(find, "```\n# by Anna Nowak\nx = 1\n```") == [("Anna Nowak", "NAME")]


def test_long_texts_are_read_in_windows_without_losing_or_moving_a_name(model_folder: Path, find):
    """The slow truth: every known name by its place in the text."""
    dice = random.Random(1)
    words = dice.choices(("Anna", "Nowak.", "Zoë,", "and", "größer", "🙂", "went", "Hauptstraße"), k=3000)
    text = " ".join(words)
    truth, at = set(), 0
    for word in words:
        plain = word.rstrip(".,")
        if plain in WORDS:
            truth.add((at, at + len(plain)))
        at += len(word) + 1
    (spans,) = find([text])
    covered = {place for span in spans for place in range(span.start, span.end)}
    assert all(set(range(*place)) <= covered for place in truth)
    beside = "".join(text[at] for at in range(len(text)) if at not in covered)
    assert not any(word in beside for word in ("Anna", "Zoë", "Hauptstraße"))
    small = load_entity_model(model_folder, {}, window=16)
    assert small.find([text]) == [spans]
    assert small.find(["", text, "x", text[:500]])[1] == spans


def test_what_stands_beside_changes_nothing(find):
    texts = ["Ask Anna Nowak.", "x" * 40, "Zoë " * 300, "", "12 + 7"]
    together = find(texts)
    assert together == [find([text])[0] for text in texts] == find(texts)


def test_a_name_has_one_placeholder_in_a_conversation_and_is_known_where_the_model_misses_it(frame, make):
    events = [
        make(1, "thumb", [("user", "I met Anna. <NAME_1> was there."), ("assistant", "Hello Anna"),
             ("user", "Zoë too")], thumb=1, conversation_id="c", response_a="Anna and Zoë"),
        make(2, "thumb", "and Anna?", thumb=1, conversation_id="c"),
        make(3, "thumb", "Anna", thumb=1, conversation_id="d"),
    ]  # fmt: skip

    def finds(texts):  # misses Anna wherever another word stands before her, but for the first time
        return [[Span(text.index(name), text.index(name) + len(name), "NAME")]
                if (name := "Zoë" if text == "Zoë too" else "Anna") in text and text[:3] != "and" else []
                for text in texts]  # fmt: skip

    work = frame(events)
    clean, counts = without_names(work, finds)
    prompts, answers = clean["prompt"].to_list(), clean["answer_a"].to_list()
    assert [turn.partition("\x1f")[2] for turn in prompts[0].split("\x1e")] == [
        "I met <NAME_2>. <NAME_1> was there.", "Hello <NAME_2>", "<NAME_3> too",
    ]  # fmt: skip
    assert answers[0] == "<NAME_2> and <NAME_3>"
    assert prompts[1] == "user\x1fand <NAME_2>?" and prompts[2] == "user\x1f<NAME_1>"
    assert counts == {"NAME": 3}
    untouched, none = without_names(work, lambda texts: [[] for _ in texts])
    assert untouched.equals(work) and none == {}


def test_many_conversations_are_taken_in_portions(frame, make, monkeypatch):
    events = [make(n, "thumb", f"Anna {n}", thumb=1, conversation_id=f"c{n % 40}") for n in range(200)]
    sizes: list[int] = []

    def finds(texts):
        sizes.append(len(texts))
        return [[Span(0, 4, "NAME")] if text.startswith("Anna") else [] for text in texts]

    whole = without_names(frame(events), finds)
    monkeypatch.setattr("raylign.feedback.clean.names.AT_ONCE", 20)
    parts = without_names(frame(events), finds)
    assert parts[0].equals(whole[0]) and parts[1] == whole[1] == {"NAME": 40}
    assert max(sizes[1:]) <= 40 and "Anna" not in "".join(parts[0]["prompt"])


def test_a_build_with_a_model(make, run_build, model_folder: Path):
    setting = f"privacy.names_model={model_folder}"
    ask = [("user", "Anna Nowak lives at Hauptstraße 12. Write to anna@example.com"), ("assistant", "Done."),
           ("user", "thanks")]  # fmt: skip
    events = [
        make(1, "thumb", ask, thumb=1, response_a="You are welcome, Anna Nowak: 12 * 7 = 84"),
        make(2, "thumb", "What is in Paris?", thumb=1, comment="Zoë said so", response_a="A tower of iron."),
        make(3, "thumb", "Zoë?", thumb=9),
    ]
    built = run_build(events, setting)
    everything = built.everything()
    for planted in ("Nowak", "Zoë", "Hauptstraße", "anna@"):
        assert planted not in everything, planted
    (first,) = [row for row in built.rows("sft") if "84" in row["messages"][-1]["content"]]
    assert first["messages"][0]["content"] == "<NAME_1> lives at <ADDRESS_1>. Write to <EMAIL_1>"
    assert first["messages"][-1]["content"] == "You are welcome, <NAME_1>: 12 * 7 = 84"
    assert "What is in Paris?" in everything
    assert "found by the model tiny-ner (" in built.result.not_covered and "B-PER, I-PER as NAME" in everything
    assert str(model_folder) not in everything
    assert {item.name: item.count for item in built.result.redactions} == {
        "ADDRESS": 1, "EMAIL": 1, "NAME": 2,  # one of them in the comment
    }  # fmt: skip
    assert built.result == run_build(events, setting).result and everything == run_build(events, setting).everything()
    assert "Zoë" not in f"{open_shelf(built.folder).events['comment'].to_list()}"

    off = run_build(events)
    assert "Nowak" in off.everything()
    assert off.result.not_covered == NOT_COVERED in (off.folder / "card.md").read_text()


def test_inspect_says_whether_names_are_looked_for(make, tmp_path: Path, model_folder: Path, capsys):
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(make(1, "thumb", thumb=1)))
    for settings, said in (
        ((), NOT_COVERED),
        ((f"privacy.names_model={model_folder}",), "found by the model tiny-ner"),
    ):
        arguments = ["feedback", "inspect", str(log), *settings]
        assert run_command(partial(app, arguments)) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "told", "label"),
    [
        ("B-PER", {}, Label("NAME", begins=True)), ("I-PERSON", {}, Label("NAME", begins=False)),
        ("S-Surname", {}, Label("NAME", begins=True)), ("FIRSTNAME_1", {}, Label("NAME", begins=False)),
        ("U_STREET_ADDRESS", {}, Label("ADDRESS", begins=True)), ("O", {}, Label(None, begins=False)),
        ("B-LOC", {}, Label(None, begins=True)), ("B-LOC", {"LOC": "ADDRESS"}, Label("ADDRESS", begins=True)),
        ("LABEL_1", {"LABEL_1": "NAME"}, Label("NAME", begins=False)),
        ("B-PER", {"PER": None}, Label(None, begins=True)),
    ],
)  # fmt: skip
def test_labels_by_their_names(name: str, told: Mapping[str, str | None], label: Label):
    assert label_of(name, told) == label


def test_labels_are_told_in_the_setting():
    assert parse_labels("{LOC: ADDRESS, TITLE: none}") == {"LOC": "ADDRESS", "TITLE": None}
    for wrong in ("{LOC: CITY}", "LOC", "[", "{LOC: 3}"):
        with pytest.raises(ValueError, match=r"expected labels|is not YAML"):
            parse_labels(wrong)


def test_a_placeholder_is_no_name():
    text = "Anna <NAME_1> Nowak"
    name = Label("NAME", begins=False)
    assert spans_of(text, [Token(0, 4, name), Token(6, 10, name), Token(14, 19, name)]) == [
        Span(0, 4, "NAME"), Span(14, 19, "NAME")]  # fmt: skip


def test_texts_that_stand_alone(find):
    texts = pl.Series(["by Zoë", None, "none", "by Zoë"])
    assert texts_without_names(texts, find).to_list() == ["by <NAME_1>", None, "none", "by <NAME_1>"]


def test_what_is_no_such_model_is_one_sentence(make, run_build, model_folder: Path, tmp_path: Path):
    def copied(name: str, **changes: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in model_folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    wrong = {
        copied("causal", architectures=["LlamaForCausalLM"]): "none that labels tokens",
        copied("unnamed", id2label={str(n): f"LABEL_{n}" for n in range(len(LABELS))}): "none of its labels is known",
        tmp_path: "not the folder of a token-classification model",
    }
    bare = copied("bare")
    (bare / "model.safetensors").unlink()
    wrong[bare] = "cannot be loaded"
    for folder, said in wrong.items():
        with pytest.raises(UserError, match=said):
            run_build([make(1, "thumb", thumb=1)], f"privacy.names_model={folder}")
    for settings, said in (
        (("privacy.names_model=/nowhere",), "there is no such folder"),
        (("privacy.names_labels={A: NAME}",), "needs privacy.names_model"),
        ((f"privacy.names_model={model_folder}", "privacy.redact=false"), "needs privacy.redact=true"),
    ):
        with pytest.raises(UserError, match=said):
            run_build([make(1, "thumb", thumb=1)], *settings)
    with pytest.raises(UserError, match=r"`CITY` is none of the model's labels"):
        run_build(
            [make(1, "thumb", thumb=1)], f"privacy.names_model={model_folder}", "privacy.names_labels={CITY: NAME}"
        )
    assert PrivacySettings().names_model == ""


def test_texts_shown_together_share_their_placeholders(model_folder: Path) -> None:
    shown = redactor_of(PrivacySettings(names_model=str(model_folder))).shown
    groups = [
        ("Ask Anna Nowak or anna@example.org.", "Anna Nowak knows, anna@example.org does."),
        ("Zoë asks.",),
        ("No.",),
    ]
    assert shown(groups) == [
        ("Ask <NAME_1> or <EMAIL_1>.", "<NAME_1> knows, <EMAIL_1> does."), ("<NAME_1> asks.",), ("No.",),
    ]  # fmt: skip


def test_a_judge_is_not_shown_the_names_that_a_model_finds(model_folder: Path, tmp_path: Path) -> None:
    row = {"event_id": "e", "kind": "side_by_side", "prompt": [{"role": "user", "content": "Who is Anna Nowak?"}],
           "response_a": "Anna Nowak is a poet.", "response_b": "Nobody.", "choice": "a"}  # fmt: skip
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "rules.md").write_text("Be right.\n")
    source = Source(logs=(tmp_path / "log.jsonl",), overrides=(f"privacy.names_model={model_folder}",))
    with serving(lambda body, number: Reply({"choices": [{"message": {"content": "Choice: A"}}]})) as asked:
        judge_pairs(source, tmp_path / "rules.md", tmp_path / "ai.jsonl", Who(model="wise", url=asked.url),
                    max_calls=0, tell=print)  # fmt: skip
    sent = json.dumps(asked.bodies)
    assert "Nowak" not in sent and "<NAME_1> is a poet." in sent and len(asked.bodies) == 2
    assert json.loads((tmp_path / "ai.jsonl").read_text())["response_a"] == row["response_a"]
