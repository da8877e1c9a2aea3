"""Offline rows: what is trained is what was meant, and what cannot be trained is named with counts and examples."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest
from raylign.conf.errors import DataError
from raylign.conf.schema import DataConfig, Overlong
from raylign.data.encoder import Encoder
from raylign.data.judged import load_judged, mismatches
from raylign.data.mask_view import first_row, mask_warnings, rewriting_warnings
from raylign.data.preferences import load_pairs
from raylign.data.row_fields import RowError
from raylign.data.row_kinds import load_rows
from raylign.data.texts import TextSet, load_conversations, load_documents
from raylign.data.tokenize import EncodedAnswer, EncodedText, load_tokenizer
from raylign.data.types import Message, RowKind
from transformers import PreTrainedTokenizerBase

SYSTEM, FIRST, SO = Message("system", "Be brief."), Message("user", "Why is it so?"), Message("assistant", "So.")
AND, THEN = Message("user", "And then?"), Message("assistant", "Then nothing.\n")
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model_dir))


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(text: EncodedText, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, float]]:
    """The trained runs as text, each with its weight."""
    runs = groupby(zip(text.token_ids, text.weights, strict=True), key=lambda pair: pair[1])
    return [(tokenizer.decode([t for t, _ in run]), weight) for weight, run in runs if weight]


def test_every_assistant_turn_is_trained_through_its_end_token_and_nothing_else(tokenizer: PreTrainedTokenizerBase):
    text = Encoder(tokenizer).encode_conversation((SYSTEM, FIRST, SO, AND, THEN), (0, 0, 1, 0, 1))
    assert trained(text, tokenizer) == [("So.<|im_end|>", 1), ("Then nothing.\n<|im_end|>", 1)]
    whole = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in (SYSTEM, FIRST, SO, AND, THEN)]
    )
    ids = whole["input_ids"] if not isinstance(whole, list) else whole
    assert list(text.token_ids) == ids[: len(text.token_ids)], "one tokenisation of the whole, its tail left out"


def test_turn_weights_count_and_a_turn_of_weight_zero_is_read_only(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    encoder = Encoder(tokenizer)
    text = encoder.encode_conversation((FIRST, SO, AND, THEN), (0, 0.25, 0, 0))
    assert trained(text, tokenizer) == [("So.<|im_end|>", 0.25)]
    assert text.token_ids[-1] == tokenizer.eos_token_id, "what follows the last trained token is left out"
    turns = [{"role": m.role, "content": m.content} for m in (FIRST, SO, AND, THEN)]
    turns[1]["weight"] = 0  # type: ignore[assignment]
    name = jsonl(tmp_path / "a.jsonl", [{"messages": turns, "weight": 0.5}])
    (loaded,) = load_conversations(name, DataConfig(), tokenizer).texts
    assert trained(loaded, tokenizer) == [("Then nothing.\n<|im_end|>", 0.5)]


def test_a_batch_trains_exactly_the_weighted_tokens(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    rows = [{"prompt": "Why?", "completion": "So."}, {"prompt": "And?", "completion": "Then.", "weight": 2.0}]
    loaded = load_conversations(jsonl(tmp_path / "a.jsonl", list(rows)), DataConfig(), tokenizer)
    batch = loaded.batch([1, 0])
    assert batch.tokens.response_mask.equal(batch.weights > 0)
    assert tokenizer.decode(batch.tokens.input_ids[batch.tokens.response_mask]) == "Then.<|im_end|>So.<|im_end|>"
    assert set(batch.weights.tolist()) == {0.0, 1.0, 2.0}


def test_a_template_that_rewrites_earlier_turns_is_refused_not_trained_wrong(tokenizer: PreTrainedTokenizerBase):
    tokenizer.chat_template = REWRITING
    encoder, thought = Encoder(tokenizer), Message("assistant", "<think>hm</think>So.")
    assert trained(encoder.encode_conversation((FIRST, thought), (0, 1)), tokenizer) == [
        ("<think>hm</think>So.<|im_end|>", 1)
    ]
    with pytest.raises(RowError, match="rewrites earlier answers"):
        encoder.encode_conversation((FIRST, thought, AND, THEN), (0, 1, 0, 1))
    assert "rewrites earlier answers" in rewriting_warnings(encoder)[0]


def test_a_document_is_trained_from_its_second_token_to_one_end_token(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    name = jsonl(tmp_path / "a.jsonl", [{"text": "one two"}, {"text": "one two<|im_end|>"}])
    plain, ended = load_documents(name, DataConfig(), tokenizer).texts
    assert plain == ended and plain.token_ids[-1] == tokenizer.eos_token_id
    assert plain.weights == (0.0, *[1.0] * (len(plain.token_ids) - 1))
    config = DataConfig(max_length=3, overlong=Overlong.truncate_left, max_overlong_fraction=1.0)
    assert load_documents(name, config, tokenizer).texts[0] == EncodedText(plain.token_ids[-3:], (0.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        (RowKind.CONVERSATIONS, {"messages": [{"role": "user", "content": "x"}]}, "has no assistant turn"),
        (
            RowKind.CONVERSATIONS,
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]},
            "every assistant turn of `messages` has weight 0",
        ),
        (RowKind.CONVERSATIONS, {"text": "x"}, "raw `text` is for algorithm=pretrain"),
        (RowKind.CONVERSATIONS, {"prompt": "x", "completion": " "}, "`completion` is empty"),
        (RowKind.CONVERSATIONS, {"prompt": "x", "completion": "y", "weight": -1}, "expected a finite number above 0"),
        (RowKind.DOCUMENTS, {"messages": []}, "no column `text`"),
        (RowKind.JUDGED, {"prompt": "x", "completion": "y"}, "no column `label`"),
        (RowKind.JUDGED, {"prompt": "x", "completion": "y", "label": 1}, "expected true or false"),
        (RowKind.PAIRS, {"prompt": "x", "chosen": "y", "rejected": "y"}, "`chosen` and `rejected` are the same"),
    ],
)
def test_a_set_of_rows_with_nothing_to_learn_is_refused_with_count_and_example(
    kind: RowKind, row: dict[str, object], reason: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    with pytest.raises(DataError) as caught:
        load_rows(kind, jsonl(tmp_path / "a.jsonl", [row] * 5), DataConfig(), tokenizer)
    assert "5 of 5 rows cannot be used" in caught.value.problems[0]
    assert caught.value.problems[1].startswith("a.jsonl:1: ") and reason in caught.value.problems[1]


def test_turns_for_a_model_without_a_template_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    tokenizer.chat_template = None
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    with pytest.raises(DataError, match="needs a chat template and the model's tokenizer has none"):
        load_conversations(jsonl(tmp_path / "a.jsonl", [row]), DataConfig(), tokenizer)


def test_too_many_overlong_rows_refuse_the_run(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    rows = [{"text": "one two"}] * 2 + [{"text": "many words " * 50}] * 3
    name = jsonl(tmp_path / "a.jsonl", list(rows))
    with pytest.raises(DataError) as caught:
        load_documents(name, DataConfig(max_length=40), tokenizer)
    assert "3 of 5 rows are longer than data.max_length allows" in caught.value.problems[0]
    assert "data.max_overlong_fraction=0.5" in caught.value.problems[0] and "a.jsonl:3" in caught.value.problems[1]
    assert load_documents(name, DataConfig(max_length=40, max_overlong_fraction=0.6), tokenizer).report.dropped == 3


def test_verdicts_of_one_kind_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": False} for i in range(4)]
    with pytest.raises(DataError, match="`label` is false in all of its 4 rows"):
        load_judged(jsonl(tmp_path / "a.jsonl", list(rows)), DataConfig(), tokenizer)
    rows[2]["label"] = True
    loaded = load_judged(jsonl(tmp_path / "a.jsonl", list(rows)), DataConfig(), tokenizer)
    assert loaded.counts == {"desirable": 1, "undesirable": 3}
    assert loaded.batch([2, 0]).desirable.tolist() == [True, False]


def test_a_mismatched_answer_is_the_next_rows_with_another_prompt():
    def answer(prompt: int, reply: int) -> EncodedAnswer:
        return EncodedAnswer((prompt, prompt, reply, reply + 1), 2)

    made = mismatches([answer(1, 10), answer(1, 20), answer(2, 30), answer(3, 40)], 3)
    assert [m.token_ids for m in made] == [(1, 1, 30), (1, 1, 30), (2, 2, 40), (3, 3, 10)]
    same = mismatches([answer(1, 10), answer(1, 20)], 9)
    assert [m.token_ids for m in same] == [(1, 1, 20, 21), (1, 1, 10, 11)]


def test_prompts_are_trained_on_the_chosen_side_only_when_asked(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    name = jsonl(tmp_path / "a.jsonl", [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}])
    plain = load_pairs(name, DataConfig(), tokenizer).batch([0])
    whole = load_pairs(name, DataConfig(), tokenizer, train_prompts=True).batch([0])
    assert plain.answers is None and whole.answers is not None and whole.answers.equal(plain.tokens.response_mask)
    chosen = int(whole.tokens.lengths[0])
    assert whole.tokens.response_mask[:chosen].tolist() == [False, *[True] * (chosen - 1)]
    assert whole.tokens.response_mask[chosen:].equal(plain.tokens.response_mask[chosen:])


def test_the_shown_row_is_what_the_learner_gets(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    turns = [{"role": m.role, "content": m.content} for m in (FIRST, SO, AND, THEN)]
    loaded = load_conversations(jsonl(tmp_path / "a.jsonl", [{"messages": turns}]), DataConfig(), tokenizer)
    (runs,) = first_row(loaded, tokenizer)
    assert [run.text for run in runs if run.trained] == ["So.<|im_end|>", "Then nothing.\n<|im_end|>"]
    assert "".join(run.text for run in runs) == tokenizer.decode(loaded.texts[0].token_ids)
    assert mask_warnings(loaded, Encoder(tokenizer), tokenizer) == []


@pytest.mark.parametrize(
    ("ids", "mask", "told"),
    [
        ((5, 6, 7, 8), (0, 0, 1, 1), "no end token, so stopping there is not learned"),
        ((5, 6, 7, 2, 9, 2), (0, 0, 1, 0, 1, 1), "end token follows it but is not trained"),
        ((1, 1, 6, 7, 2), (0, 0, 0, 1, 1), "begin with two BOS tokens"),
        ((5, 6, 7, 2, 2), (0, 0, 1, 1, 1), "train two end tokens in a row"),
    ],
)
def test_odd_masks_are_named(
    ids: tuple[int, ...], mask: tuple[int, ...], told: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    good = load_documents(jsonl(tmp_path / "a.jsonl", [{"text": "fine"}]), DataConfig(), tokenizer)
    rows = TextSet((*good.texts, EncodedText(ids, tuple(map(float, mask)))), "", good.report)
    (warning,) = mask_warnings(rows, Encoder(tokenizer), tokenizer)
    scoring = mask_warnings(rows, Encoder(tokenizer), tokenizer, generates=False)
    assert scoring == ([warning] if "BOS" in told else []), "how an answer ends does not matter to a reward model"
    assert told in warning and warning.startswith("masks: 1 of 2 sequences") and "(first: sequence 2)" in warning
