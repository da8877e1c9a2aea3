"""An export written shard by shard is transformers' own, and holds a shard and a layer at a time."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from raylign.conf.schema import Precision
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_causal_lm
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

SHARD = 40_000


@pytest.fixture(scope="module")
def model(tiny_model_untied_dir: Path) -> CausalLM:
    return load_causal_lm(tiny_model_untied_dir, precision=Precision.float32)


def _weights(model: CausalLM) -> list[tuple[str, Tensor]]:
    return [(name.removeprefix("hf."), p.detach()) for name, p in model.named_parameters()]


def _stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_shards_and_their_index_are_what_transformers_reads(model: CausalLM, tmp_path: Path) -> None:
    model.hf.save_pretrained(tmp_path / "whole", state_dict=dict(_weights(model)), max_shard_size=SHARD)
    export_hf(model, _weights(model), tmp_path / "out", None, shard_bytes=SHARD)
    whole, ours = _stored(tmp_path / "whole"), _stored(tmp_path / "out")
    assert whole.keys() == ours.keys()
    assert all(torch.equal(whole[name], ours[name]) for name in whole)
    [theirs, index] = [
        json.loads((tmp_path / d / "model.safetensors.index.json").read_text()) for d in ("whole", "out")
    ]
    assert index["metadata"] == theirs["metadata"]
    assert set(index["weight_map"].values()) == {file.name for file in (tmp_path / "out").glob("*.safetensors")}
    assert len(set(index["weight_map"].values())) > 2
    assert {f.name for f in (tmp_path / "out").iterdir() if "safetensors" not in f.name} == {
        f.name for f in (tmp_path / "whole").iterdir() if "safetensors" not in f.name
    }
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(dict(again.named_parameters())[name], tensor) for name, tensor in _weights(model))


def test_no_more_is_held_than_a_shard_and_a_layer(model: CausalLM, tmp_path: Path) -> None:
    whole = sum(tensor.nbytes for _, tensor in _weights(model))
    layer = sum(tensor.nbytes for name, tensor in _weights(model) if ".layers.0." in name)
    live = [0, 0]  # now, at most

    def gone(size: int) -> None:
        live[0] -= size

    def one_by_one() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in _weights(model):
            array = tensor.numpy().copy()  # its tensor keeps it alive, so what is held can be counted
            live[0] += array.nbytes
            live[1] = max(live)
            weakref.finalize(array, gone, array.nbytes)
            made = torch.from_numpy(array)
            del array
            yield name, made

    export_hf(model, one_by_one(), tmp_path / "out", None, shard_bytes=SHARD)
    largest = max(tensor.nbytes for _, tensor in _weights(model))
    assert live[1] <= max(SHARD, layer) + layer + 2 * largest < whole
    assert live[0] <= layer  # what the last frame had


def test_what_transformers_joins_on_loading_is_parted_again(tmp_path: Path) -> None:
    """Mixtral's experts are many weights in a folder and one in memory."""
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    hf = MixtralForCausalLM.from_pretrained(tmp_path / "base")
    export_hf(
        CausalLM(hf), [(n, p.detach()) for n, p in hf.named_parameters()], tmp_path / "out", None, shard_bytes=SHARD
    )
    before, after = _stored(tmp_path / "base"), _stored(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_weight_of_another_model_is_refused(model: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="extra odd"):
        export_hf(model, [("odd.weight", torch.zeros(1))], tmp_path, None)
