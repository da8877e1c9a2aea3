"""Tokens and masks against a slower truth, on a real tokenizer with and without a chat template."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from raylign.conf.errors import ModelLoadError
from raylign.data.encoder import Encoder
from raylign.data.row_fields import RowError
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import Message
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

SYSTEM, USER, REPLY = Message("system", "Be brief."), Message("user", "Why is it so?"), Message("assistant", "So.")


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model_dir))


def plain(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    tokenizer.chat_template = None
    return Encoder(tokenizer)


def test_a_prompt_is_the_rendered_template_with_the_answer_opened(tokenizer: PreTrainedTokenizerBase):
    encoder = Encoder(tokenizer)
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": USER.content}], add_generation_prompt=True, return_dict=False
    )
    assert list(encoder.encode_prompt(USER.content)) == list(encoder.encode_prompt((USER,))) == list(expected)


@pytest.mark.parametrize("answer", ["So.", "\nSo", " ", "12 and 7\n\n", "<|im_start|>user\nfake", "é 你好"])
def test_prompt_and_answer_are_what_sampling_would_have_made(answer: str, tokenizer: PreTrainedTokenizerBase):
    encoder = Encoder(tokenizer)
    encoded = encoder.encode_answer(USER.content, answer)
    prompt = encoder.encode_prompt(USER.content)
    assert encoded.token_ids[: encoded.prompt_tokens] == prompt
    assert encoded.token_ids[-1] == tokenizer.eos_token_id
    assert encoded.token_ids.count(tokenizer.eos_token_id) == prompt.count(tokenizer.eos_token_id) + 1
    assert tokenizer.decode(encoded.token_ids[encoded.prompt_tokens : -1]) == answer
    assert sum(encoded.mask) == len(encoded.token_ids) - len(prompt)


def test_earlier_answers_of_a_conversation_are_not_trained(tokenizer: PreTrainedTokenizerBase):
    encoded = Encoder(tokenizer).encode_answer((SYSTEM, USER, REPLY, Message("user", "And?")), "Last.")
    trained = tokenizer.decode([t for t, m in zip(encoded.token_ids, encoded.mask, strict=True) if m])
    assert trained == "Last.<|im_end|>"


def test_the_system_prompt_is_put_first_unless_there_is_one(tokenizer: PreTrainedTokenizerBase):
    encoder = Encoder(tokenizer, system_prompt="Be kind.")
    assert encoder.messages("hi") == (Message("system", "Be kind."), Message("user", "hi"))
    assert encoder.messages((SYSTEM, USER)) == (SYSTEM, USER)
    assert encoder.encode_prompt("hi") == Encoder(tokenizer).encode_prompt(encoder.messages("hi"))


def test_bos_is_there_once_with_and_without_a_template(tokenizer: PreTrainedTokenizerBase):
    bos = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, bos)]
    )
    assert tokenizer("x")["input_ids"][0] == bos  # this tokenizer now adds one by itself
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    for ids in (Encoder(tokenizer).encode_prompt("hi"), Encoder(tokenizer).encode_answer("hi", "ho").token_ids):
        assert list(ids).count(bos) == 1 and ids[0] == bos
    encoder = plain(tokenizer)
    for ids in (encoder.encode_prompt("hi"), encoder.encode_answer("hi", "ho").token_ids):
        assert list(ids).count(bos) == 1 and ids[0] == bos


def test_a_template_without_an_end_token_gets_one(tokenizer: PreTrainedTokenizerBase):
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    encoded = Encoder(tokenizer).encode_answer("hi", "ho")
    assert tokenizer.decode(encoded.token_ids[encoded.prompt_tokens :]) == "ho<|im_end|>"


def test_an_end_token_other_than_eos_is_kept_as_the_end(tokenizer: PreTrainedTokenizerBase):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn_end>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<turn_end>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    encoded = Encoder(tokenizer).encode_answer("hi", "ho")
    assert tokenizer.decode(encoded.token_ids[encoded.prompt_tokens :]) == "ho<turn_end>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerBase):
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(RowError, match="does not render the prompt the same"):
        Encoder(tokenizer).encode_answer("hi", "ho")


def test_what_a_template_refuses_is_a_bad_row(tokenizer: PreTrainedTokenizerBase):
    tokenizer.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(RowError, match=r"the chat template refuses the turns .*only one turn"):
        Encoder(tokenizer).encode_prompt("hi")


def test_without_a_template_text_is_text_and_turns_are_refused(tokenizer: PreTrainedTokenizerBase):
    encoder = plain(tokenizer)
    assert tokenizer.decode(encoder.encode_prompt("Once upon")) == "Once upon"
    encoded = encoder.encode_answer("Once upon", " a time")
    assert encoded.token_ids[: encoded.prompt_tokens] == encoder.encode_prompt("Once upon")
    assert tokenizer.decode(encoded.token_ids[encoded.prompt_tokens :]) == " a time<|im_end|>"
    with pytest.raises(RowError, match=r"which needs a chat template .*set data\.chat_template .*or give text"):
        encoder.encode_prompt((USER,))


def test_folders_without_a_usable_tokenizer_are_refused(tmp_path: Path, tiny_model_dir: Path):
    with pytest.raises(ModelLoadError, match="there is no such folder"):
        load_tokenizer(str(tmp_path / "gone"))
    with pytest.raises(ModelLoadError, match="tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match="tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path / "model"))
