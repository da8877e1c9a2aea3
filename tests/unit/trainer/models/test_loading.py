"""Folders in and out: every wrong one is named, and an exported one is what transformers expects."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raylign.conf.errors import ModelLoadError
from raylign.conf.schema import Precision
from raylign.data.types import TokenBatch
from raylign.trainer.functional.packing import Packing, pack
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
)

FP32 = Precision.float32


@pytest.mark.parametrize("fixture", ["tiny_model_dir", "tiny_model_untied_dir"])
def test_an_export_is_the_same_plain_folder(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source: Path = request.getfixturevalue(fixture)
    model = load_causal_lm(source, precision=FP32)
    state = {name.removeprefix("hf."): p.detach() for name, p in model.named_parameters()}
    export_hf(model, state.items(), tmp_path / "out", AutoTokenizer.from_pretrained(source))
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again).__name__ == "LlamaForCausalLM"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_a_role_that_has_loaded_a_model_adds_up_in_float32(tiny_model_dir: Path) -> None:
    """Of a product in bfloat16 on a card, whose library may else round sums of parts."""
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    load_causal_lm(tiny_model_dir, precision=Precision.bfloat16)
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


def test_an_export_with_a_weight_missing_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_causal_lm(tiny_model_dir, precision=FP32)
    state = {name.removeprefix("hf."): p.detach() for name, p in model.named_parameters()}
    del state["model.norm.weight"]
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        export_hf(model, state.items(), tmp_path, None)


def test_a_new_head_is_drawn_without_a_report_and_others_still_have_theirs(
    tiny_model_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        load_scalar_model(tiny_model_dir, precision=FP32, new_head_seed=0)
        assert not caplog.records
        AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    assert "LOAD REPORT" in caplog.text


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        load_causal_lm(tmp_path / "nothing", precision=FP32)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        load_causal_lm(tmp_path, precision=FP32)


def test_pickled_weights_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_causal_lm(folder, precision=FP32)


def test_a_dropped_weight_is_an_error_not_a_random_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "holed")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="up_proj"):
        load_causal_lm(folder, precision=FP32)


def test_the_wrong_head_is_named_both_ways(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="without a scalar head"):
        load_scalar_model(tiny_model_dir, precision=FP32)
    model = load_scalar_model(tiny_model_dir, precision=FP32, new_head_seed=0)
    export_hf(model, ((n.removeprefix("hf."), p) for n, p in model.named_parameters()), tmp_path / "rm", None)
    with pytest.raises(ModelLoadError, match="needs a causal language model"):
        load_causal_lm(tmp_path / "rm", precision=FP32)


def test_a_classifier_with_two_labels_is_no_reward_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "two")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="2 labels"):
        load_scalar_model(folder, precision=FP32)


def test_a_head_that_is_more_than_a_product_is_refused(tmp_path: Path) -> None:
    """Gemma 2 soft-caps its logits: the fused head would train on other log-probs than the engine serves."""
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.5,
        pad_token_id=0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "capped")
    with pytest.raises(ModelLoadError, match="not supported by packed training"):
        load_causal_lm(tmp_path / "capped", precision=FP32)


@pytest.mark.parametrize("scalar", [False, True])
def test_a_model_that_gets_a_shared_prompt_wrong_is_refused(
    scalar: bool, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a layer that keeps more of the past than keys would: sequences of their own are right, shared ones are not."""

    def astray(tokens: TokenBatch, *, min_saved: float) -> Packing:
        right = pack(tokens, min_saved=min_saved)
        if not right.shared:
            return right
        rows = right.rows.clone()
        follower = right.paths[1]
        rows[follower.start] = rows[-1]  # its first key is another sequence's
        return replace(right, rows=rows)

    monkeypatch.setattr("raylign.trainer.models.packing_check.pack", astray)
    with pytest.raises(ModelLoadError, match="not supported by packed training"):
        if scalar:
            load_scalar_model(tiny_model_dir, precision=FP32, new_head_seed=0)
        else:
            load_causal_lm(tiny_model_dir, precision=FP32)


def test_a_model_with_convolutions_over_the_tokens_is_refused(tmp_path: Path) -> None:
    config = Lfm2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
        initializer_range=0.3,  # at 0.02 a new layer adds next to nothing to the state
        pad_token_id=0,
    )
    Lfm2ForCausalLM(config).save_pretrained(tmp_path / "hybrid")
    with pytest.raises(ModelLoadError, match="not supported by packed training"):
        load_causal_lm(tmp_path / "hybrid", precision=FP32)
