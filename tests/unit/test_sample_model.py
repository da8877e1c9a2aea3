"""The models that need no download: complete, deterministic, safe to build twice, and one that really answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from raylign.data import sample_model
from raylign.data.sample_model import MANIFEST, SampleModelError, prepare_sample_model, tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def test_tiny_models_load_with_the_embedding_tying_asked_for(tiny_model_dir: Path, tiny_model_untied_dir: Path):
    tied = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    untied = AutoModelForCausalLM.from_pretrained(tiny_model_untied_dir)

    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tiny_model_dir / "model.safetensors")
    assert not torch.equal(untied.lm_head.weight, untied.model.embed_tokens.weight)
    assert tied.dtype == untied.dtype == torch.float32


def test_tiny_model_keeps_pad_and_end_of_sequence_apart_everywhere(tiny_model_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    config = AutoModelForCausalLM.from_pretrained(tiny_model_dir).config
    generation = GenerationConfig.from_pretrained(tiny_model_dir)

    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|pad|>"
    for holder in (tokenizer, config, generation):
        assert (holder.pad_token_id, holder.eos_token_id) == (0, 2)
    assert len(tokenizer) == config.vocab_size == 512


@pytest.mark.parametrize(
    "text", ["The capital of France is Paris.", "  12 + 7 = 19\n\n", "Grüße, 世界 🙂", "<|im_end|>"]
)
def test_tiny_tokenizer_gives_back_any_text(tiny_model_dir: Path, text: str):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)

    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_tiny_tokenizer_splits_numbers_into_digits_and_adds_nothing(tiny_model_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)

    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    assert tokenizer("1234").input_ids == tokenizer("1234", add_special_tokens=False).input_ids


def test_tiny_chat_template_ends_each_turn_with_the_end_token(tiny_model_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    messages = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]

    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)

    assert prompt == "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert whole == prompt + "2<|im_end|>\n"


def test_same_arguments_give_the_same_bytes_and_another_seed_other_weights(tiny_model_dir: Path, tmp_path: Path):
    state = torch.get_rng_state()
    again = tiny_model(tmp_path / "again", tie=True)
    other = tiny_model(tmp_path / "other", tie=True, seed=1)

    def digests(folder: Path) -> dict[str, str]:
        return json.loads((folder / MANIFEST).read_text())["files"]

    assert digests(again) == digests(tiny_model_dir)
    assert digests(other)["model.safetensors"] != digests(again)["model.safetensors"]
    assert digests(other)["tokenizer.json"] == digests(again)["tokenizer.json"]
    assert torch.equal(state, torch.get_rng_state()), "building a model must not disturb the caller's random state"


def test_tiny_log_probabilities_are_far_from_uniform(tiny_model_dir: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    logits = model(torch.arange(3, 40).unsqueeze(0)).logits[0]

    assert logits.log_softmax(-1).std() > 0.5


def test_a_folder_of_someone_else_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep me")

    with pytest.raises(SampleModelError, match="not a prepared model"):
        tiny_model(tmp_path, tie=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(source: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(sample_model, "_convert_gguf", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare_sample_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_a_sentence_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sample_model, "SAMPLE_PACKAGE", "no_such_package_here")

    with pytest.raises(SampleModelError, match="make setup"):
        prepare_sample_model(tmp_path / "model")


def test_an_intact_folder_is_kept_and_a_damaged_one_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("whole")
        written.append(source)

    monkeypatch.setattr(sample_model, "_convert_gguf", convert)
    folder = prepare_sample_model(tmp_path / "model")
    assert prepare_sample_model(folder) == folder and len(written) == 1

    (folder / "config.json").write_text("torn")
    prepare_sample_model(folder)
    assert (folder / "config.json").read_text() == "whole" and len(written) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_the_sample_model_is_plain_fp32_and_answers(tmp_path: Path):
    folder = prepare_sample_model(tmp_path / "sample")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]

    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]

    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id == 2
    assert model.dtype == torch.float32 and model.config.tie_word_embeddings
    assert not hasattr(model.config, "quantization_config")
