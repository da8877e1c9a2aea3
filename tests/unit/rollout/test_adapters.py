"""Adapters alone: what an engine makes of them and its own folder is what the learner merges, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raylign.conf.schema import LoraConfig, OptimConfig, Precision
from raylign.rollout.adapters import AdapterUpdate
from raylign.rollout.fingerprint import dtype_name, tensor_digest
from raylign.rollout.interfaces import AdapterSpec, TensorSpec, WeightManifest, WeightUpdateError
from raylign.trainer.engine.buckets import adapted_layers, weights_and_adapters, weights_to_buckets
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.models.adapters import add_adapters, start_adapters
from raylign.trainer.models.loading import load_causal_lm
from safetensors.torch import save_file
from torch import Tensor

CPU = torch.device("cpu")


class Learner:
    """A model with adapters that have trained."""

    def __init__(self, folder: Path, precision: Precision, targets: tuple[str, ...] = ()) -> None:
        model = load_causal_lm(str(folder), precision=precision)
        add_adapters(model.hf, LoraConfig(rank=4, alpha=8.0, target_modules=list(targets)))
        start_adapters(model.hf, seed=1)
        self.engine = TorchEngine(model, OptimConfig(), total_steps=1)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.hf.named_parameters():
            if name.endswith("lora_B"):
                parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        self.adapters: dict[str, Tensor] = {}
        self.merged = {n: t.clone() for n, t in weights_and_adapters(self.engine, self.adapters)}
        self.specs = {
            n: TensorSpec(n, tuple(t.shape), dtype_name(t.dtype), tensor_digest(t)) for n, t in self.merged.items()
        }

    def announced(self) -> list[AdapterSpec]:
        layers = adapted_layers(self.engine).items()
        return [AdapterSpec(f"{name}.weight", layer.rank, layer.scale) for name, layer in layers]

    def update(self, folder: Path) -> AdapterUpdate:
        return AdapterUpdate(folder, self.announced())


def made(learner: Learner, folder: Path, sent: dict[str, Tensor]) -> dict[str, Tensor]:
    update = learner.update(folder)
    update.receive(sent.items())
    return dict(update.whole_weights(learner.specs.values(), CPU))


@pytest.mark.slow
@pytest.mark.parametrize("precision", list(Precision))
def test_the_engine_makes_what_the_learner_publishes_whole(tiny_model_dir: Path, precision: Precision) -> None:
    learner = Learner(tiny_model_dir, precision)
    found = made(learner, tiny_model_dir, learner.adapters)
    whole = {n: t for b in weights_to_buckets(learner.engine, 1 << 30) for n, t in zip(b.names, b.tensors, strict=True)}
    assert found.keys() == whole.keys() == learner.specs.keys()
    assert all(tensor_digest(found[name]) == learner.specs[name].digest == tensor_digest(whole[name]) for name in whole)
    moved = [name for name in found if not torch.equal(found[name], base(tiny_model_dir, precision)[name])]
    assert sorted(moved) == sorted(spec.weight for spec in learner.announced())


def base(folder: Path, precision: Precision) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in load_causal_lm(str(folder), precision=precision).hf.named_parameters()}


def test_threads_and_memory_do_not_change_the_sum() -> None:
    from raylign.rollout.adapters import merge

    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((576, 576), (1537, 577), (192, 576)):
        w, a, b = (torch.randn(s, generator=generator) for s in ((rows, columns), (16, columns), (rows, 16)))
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results += [merge(w, a, b, 2.0, "w"), merge(w.clone(), a.clone(), b.clone(), 2.0, "w")]
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(results[0], result) for result in results)


def test_a_flipped_bit_in_an_adapter_shows_in_the_digest_of_its_weight_alone(tiny_model_dir: Path) -> None:
    learner = Learner(tiny_model_dir, Precision.float32)
    name = "model.layers.0.mlp.down_proj.lora_B"
    sent = learner.adapters | {name: learner.adapters[name].clone()}
    sent[name].view(torch.int32)[2, 1] ^= 1 << 20
    found = made(learner, tiny_model_dir, sent)
    wrong = [n for n, t in found.items() if tensor_digest(t) != learner.specs[n].digest]
    assert wrong == ["model.layers.0.mlp.down_proj.weight"]


def test_swapped_adapters_and_another_folder_show(tiny_model_dir: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_model_dir, Precision.float32)
    first, second = (f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))
    sent = dict(learner.adapters)
    sent[f"{first}.lora_A"], sent[f"{second}.lora_A"] = sent[f"{second}.lora_A"], sent[f"{first}.lora_A"]
    found = made(learner, tiny_model_dir, sent)
    wrong = [n for n, t in found.items() if tensor_digest(t) != learner.specs[n].digest]
    assert wrong == [f"{first}.weight", f"{second}.weight"]
    save_file({n: t * 1.01 for n, t in base(tiny_model_dir, Precision.float32).items()}, tmp_path / "m.safetensors")
    found = made(learner, tmp_path, learner.adapters)
    assert all(tensor_digest(found[spec.weight]) != learner.specs[spec.weight].digest for spec in learner.announced())


def test_what_did_not_arrive_is_not_made(tiny_model_dir: Path) -> None:
    learner = Learner(tiny_model_dir, Precision.float32)
    sent = dict(learner.adapters)
    del sent["model.layers.1.self_attn.k_proj.lora_A"]
    assert learner.specs.keys() - made(learner, tiny_model_dir, sent).keys() == {
        "model.layers.1.self_attn.k_proj.weight"
    }


def test_foreign_and_repeated_tensors_are_refused(tiny_model_dir: Path) -> None:
    learner = Learner(tiny_model_dir, Precision.float32, targets=("q_proj",))
    update = learner.update(tiny_model_dir)
    name, tensor = next(iter(learner.adapters.items()))
    with pytest.raises(WeightUpdateError, match=r"mlp\.up_proj\.lora_A is of no announced adapter"):
        update.receive([("model.layers.0.mlp.up_proj.lora_A", tensor)])
    update.receive([(name, tensor)])
    with pytest.raises(WeightUpdateError, match="arrived twice"):
        update.receive([(name, tensor)])


def _files(folder: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    tensors = base(folder, Precision.float32)
    names = sorted(tensors)
    yield "one.safetensors", {n: tensors[n].contiguous() for n in names[::2]}
    yield "two.safetensors", {n: tensors[n].contiguous() for n in names[1::2]}


def test_a_folder_in_shards_is_read_and_one_with_other_names_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_model_dir, Precision.float32)
    for file, tensors in _files(tiny_model_dir):
        save_file(tensors, tmp_path / file)
    found = made(learner, tmp_path, learner.adapters)
    assert all(tensor_digest(t) == learner.specs[n].digest for n, t in found.items())
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(WeightUpdateError, match="stores no tensor"):
        made(learner, tmp_path, learner.adapters)
    (tmp_path / "one.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightUpdateError, match="cannot be read again"):
        made(learner, tmp_path, learner.adapters)


def test_bytes_of_a_publication(tiny_model_dir: Path) -> None:
    learner = Learner(tiny_model_dir, Precision.bfloat16)
    whole = WeightManifest(1, tuple(learner.specs.values()), True)
    assert whole.num_bytes == sum(t.nbytes for t in learner.merged.values())
    alone = replace(whole, adapters=tuple(learner.announced()))
    assert alone.num_bytes == sum(t.nbytes for t in learner.adapters.values()) < whole.num_bytes / 5
