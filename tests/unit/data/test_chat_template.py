"""data.chat_template: families, files and folders give a template that works, or a sentence that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.conf.errors import DataError
from raylign.data.chat_template import FAMILIES, read_chat_template, template_problems
from raylign.data.encoder import Encoder
from raylign.data.row_fields import RowError
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import Message
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.unit.data.chat_families import TOKENIZERS
from tests.unit.data.chat_families import tokenizer as made_tokenizer

TURNS = (
    Message("system", "Be brief."), Message("user", "Name a city."), Message("assistant", "Paris."),
    Message("user", "Another?"), Message("assistant", "\n Rome,\n\n"),
)  # fmt: skip


def with_family(kind: str, name: str) -> PreTrainedTokenizerFast:
    family = FAMILIES[name]
    made = made_tokenizer(kind, family.template, "</s>")
    made.add_tokens([AddedToken(t, special=True, normalized=False) for t in family.tokens], special_tokens=True)
    return made


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_with_every_family_an_answer_is_the_sampled_prompt_its_words_and_one_end_token(kind: str, name: str):
    made = with_family(kind, name)
    encoder = Encoder(made)
    prompt, answer = encoder.encode_prompt(TURNS[:4]), encoder.encode_answer(TURNS[:4], "\n Rome,\n\n")
    assert answer.token_ids[: len(prompt)] == prompt and len(prompt) == answer.prompt_tokens
    written = list(answer.token_ids[len(prompt) :])
    assert [encoder.is_end(i) for i in written].count(True) == 1 and encoder.is_end(written[-1])
    assert made.decode(list(answer.token_ids[:-1])).endswith("\n Rome,\n\n")
    whole = encoder.encode_conversation(TURNS, (0, 0, 1, 0, 1))
    trained = made.decode([i for i, w in zip(whole.token_ids, whole.weights, strict=True) if w])
    end = made.convert_ids_to_tokens(written[-1])
    assert trained.count(end) == 2 and "Paris." in trained and "Rome" in trained and "city" not in trained


@pytest.mark.parametrize("name", ["vicuna", "alpaca"])
def test_a_turn_that_a_family_does_not_know_is_refused(name: str):
    with pytest.raises(RowError, match="turns of system, user and assistant only"):
        Encoder(with_family("gpt2", name)).encode_prompt((Message("user", "a"), Message("tool", "b")))


def test_a_template_comes_from_a_file_or_a_folder_and_takes_the_place_of_the_models_own(
    tmp_path: Path, tiny_model_dir: Path
):
    own = load_tokenizer(str(tiny_model_dir)).chat_template
    assert read_chat_template(str(tiny_model_dir)) == own and read_chat_template("") == ""
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    assert load_tokenizer(str(tiny_model_dir), read_chat_template(str(file))).chat_template == file.read_text()
    assert load_tokenizer(str(tiny_model_dir)).chat_template == own


def test_what_cannot_be_read_is_refused_with_the_names_there_are(tmp_path: Path, tiny_model_dir: Path):
    broken, empty = tmp_path / "broken.jinja", tmp_path / "empty.jinja"
    broken.write_text("a\n{% for m in messages %}")
    empty.write_text(" \n")
    for named, words in {
        "chatmll": ("no such file", "known: chatml, hermes, llama3", "did you mean chatml?"),
        str(broken): ("line 2 is not valid Jinja",),
        str(empty): ("empty",),
        str(tmp_path): ("no tokenizer", "cannot be loaded"),
    }.items():
        with pytest.raises(Exception) as caught:
            read_chat_template(named)
        assert isinstance(caught.value, DataError) or named == str(tmp_path)
        assert any(w in str(caught.value) for w in words) and named in str(caught.value), caught.value
    tokenizer = load_tokenizer(str(tiny_model_dir))
    assert template_problems("chatml", tokenizer, "m") == template_problems("zephyr", tokenizer, "m") == []
    (problem,) = template_problems("llama3", tokenizer, "m")
    assert (
        "no token <|start_header_id|>, <|end_header_id|>, <|eot_id|>" in problem and "chatml, hermes, zephyr" in problem
    )
