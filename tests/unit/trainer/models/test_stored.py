"""Folders that are no whole model are refused from their files alone, in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from raylign.conf.errors import ModelLoadError
from raylign.data.encoder import Encoder
from raylign.data.sample_model import tiny_model
from raylign.data.tokenize import load_tokenizer
from raylign.trainer.models.loading import model_skeleton
from raylign.trainer.models.stored import refuse_other_weights, stored_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def configured(folder: Path, **changed: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def indexed(folder: Path, index: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


WRONG: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (cut, "cannot be read"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read"),
    "a weight less": (lambda f: rewritten(f, lambda w: w.pop(Q)), f"the weights lack {Q}"),
    "another shape": (lambda f: rewritten(f, lambda w: w.update({Q: w[Q][:10].clone()})), "stores? .10, 128."),
    "whole numbers": (lambda f: rewritten(f, lambda w: w.update({Q: w[Q].to(torch.int8)})), "stored as I8"),
    "eight bits": (lambda f: rewritten(f, lambda w: w.update({Q: w[Q].to(torch.float8_e4m3fn)})), "F8_E4M3"),
    "a shard less": (
        lambda f: indexed(f, json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}})),
        "lacks model-00002-of-00002",
    ),
    "a broken index": (lambda f: indexed(f, "{"), "not an index of weights"),
    "no layers": (lambda f: configured(f, num_hidden_layers=0), "layers that config.json does not have"),
    "a layer less": (lambda f: configured(f, num_hidden_layers=1), "layers that config.json does not have"),
    "a layer more": (lambda f: configured(f, num_hidden_layers=3), "the weights lack model.layers.2"),
    "more words": (lambda f: configured(f, vocab_size=900), "describes model.embed_tokens.weight as .900, 128."),
    "quantised": (lambda f: configured(f, quantization_config={"quant_method": "gptq", "bits": 4}), "quantised .gptq."),
    "no object": (lambda f: (f / "config.json").write_text("[1]"), "cannot be read as a model"),
    "text for a number": (lambda f: configured(f, hidden_size="128"), "cannot be read as a model"),
    "heads that do not divide": (lambda f: configured(f, num_attention_heads=3), "not a multiple"),
    "no such type": (lambda f: configured(f, dtype="float7"), "cannot be read as a model"),
    "no such rotary scaling": (lambda f: configured(f, rope_parameters={"rope_type": "odd"}), "there is no 'odd'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_not_what_its_configuration_says(name: str, folder: Path):
    change, said = WRONG[name]
    change(folder)
    with pytest.raises(ModelLoadError, match=said):
        refuse_other_weights(folder, model_skeleton(folder, scalar=False))


@pytest.mark.parametrize("tie", [True, False])
def test_what_is_whole_is_not_refused(tie: bool, tmp_path: Path):
    folder = tiny_model(tmp_path / "model", tie=tie)
    refuse_other_weights(folder, model_skeleton(folder, scalar=False))
    refuse_other_weights(folder, model_skeleton(folder, scalar=True))  # a reward model's start: a head is drawn

    def more(weights: dict[str, Tensor]) -> None:  # of another part of a larger model, and an old buffer
        weights["vision_tower.layers.7.attn.weight"] = torch.zeros(2)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)

    rewritten(folder, more)
    refuse_other_weights(folder, model_skeleton(folder, scalar=False))
    assert "vision_tower.layers.7.attn.weight" in stored_tensors(folder), "what was to be passed over was not there"


@pytest.mark.parametrize("template", ["hello", "", "{% for m in messages %}{{ m.role }}{% endfor %}"])
def test_a_template_without_the_question_is_refused(template: str, tiny_model_dir: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelLoadError, match="does not print what the user says"):
        load_tokenizer(str(folder))


def test_a_list_of_generation_settings_ends_nothing(folder: Path):
    (folder / "generation_config.json").write_text("[]")
    assert Encoder(load_tokenizer(str(folder)))
