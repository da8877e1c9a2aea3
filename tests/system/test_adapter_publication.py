"""Adapters alone on a real vLLM engine: it serves what a publication of all weights would have made it serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from raylign.conf.schema import LoraConfig, OptimConfig, Precision
from raylign.data.sample_model import tiny_model
from raylign.rollout.fingerprint import dtype_name, tensor_digest
from raylign.rollout.interfaces import AdapterSpec, Canary, TensorSpec, VerifyReport, WeightManifest, WeightUpdateError
from raylign.trainer.engine.buckets import adapted_layers, weights_and_adapters
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.models.adapters import add_adapters, start_adapters
from raylign.trainer.models.loading import load_causal_lm
from safetensors.torch import save_file
from torch import Tensor

from tests.system.test_weights import TOKENS, Bench

pytestmark = pytest.mark.system

TARGETS = ["q_proj", "up_proj", "down_proj"]
"""q alone of the fused q, k and v, up alone of gate and up: the engine loads the others from its folder."""


class Adapted:
    """A learner with adapters on the engine's model."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        model = load_causal_lm(str(bench.folder), precision=Precision.float32)
        add_adapters(model.hf, LoraConfig(rank=4, alpha=8.0, target_modules=TARGETS))
        start_adapters(model.hf, seed=1)
        self.engine = TorchEngine(model, OptimConfig(), total_steps=1)

    def train(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.engine.module.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        adapters: dict[str, Tensor] = {}
        merged = {name: tensor.clone() for name, tensor in weights_and_adapters(self.engine, adapters)}
        self.bench.model.load_state_dict(merged, strict=False)
        return merged, adapters

    def publish(self, folder: Path, *, alone: bool, changed: Mapping[str, Tensor] | None = None) -> VerifyReport:
        merged, adapters = self.weights()
        specs = tuple(TensorSpec(n, tuple(t.shape), dtype_name(t.dtype), tensor_digest(t)) for n, t in merged.items())
        layers = adapted_layers(self.engine).items()
        announced = tuple(AdapterSpec(f"{name}.weight", layer.rank, layer.scale) for name, layer in layers)
        bench, engine = self.bench, self.bench.engine
        bench.version += 1
        manifest = WeightManifest(bench.version, specs, True, adapters=announced if alone else ())
        bench.run(engine.begin_update(manifest))
        path = folder / "bucket.safetensors"
        save_file((adapters if alone else merged) | dict(changed or {}), path)
        bench.run(engine.load_bucket(str(path)))
        return bench.run(engine.finish_update([Canary(TOKENS, tuple(bench.logprobs(TOKENS)))]))

    def served(self) -> list[float]:
        self.bench.run(self.bench.engine.resume(self.bench.version))
        return self.bench.run(self.bench.engine.score_tokens([TOKENS], 1.0))[0]


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapted]:
    bench = Bench(tiny_model(tmp_path_factory.mktemp("adapted") / "model", tie=True))
    yield Adapted(bench)
    bench.close()


def test_adapters_alone_serve_what_all_weights_would(learner: Adapted, tmp_path: Path) -> None:
    assert learner.publish(tmp_path, alone=False).passed(1e-3)
    start = learner.served()
    for seed in (1, 2):
        learner.train(seed)
        report = learner.publish(tmp_path, alone=True)
        assert report.passed(1e-3), report
        merged, _ = learner.weights()
        adapted = [name for name in merged if name.split(".")[-2] in TARGETS]
        assert adapted and all(report.digests[name] == tensor_digest(merged[name]) for name in adapted)
        alone = learner.served()
        assert max(abs(a - b) for a, b in zip(alone, start, strict=True)) > 0.01, "the adapters changed nothing"
        assert learner.publish(tmp_path, alone=False).passed(1e-3)
        assert learner.served() == alone


def test_a_flipped_bit_is_found_and_all_weights_heal_it(learner: Adapted, tmp_path: Path) -> None:
    learner.train(3)
    _, adapters = learner.weights()
    name = "model.layers.1.self_attn.q_proj.lora_A"
    wrong = adapters[name].clone()
    wrong.view(torch.int32)[1, 2] ^= 1 << 18
    report = learner.publish(tmp_path, alone=True, changed={name: wrong})
    assert report.mismatched == ("model.layers.1.self_attn.q_proj.weight",)
    with pytest.raises(WeightUpdateError, match="may not serve"):
        learner.served()
    with pytest.raises(WeightUpdateError, match="is of no announced adapter"):
        learner.publish(tmp_path, alone=True, changed={"model.norm.lora_A": wrong})
    assert learner.publish(tmp_path, alone=False).passed(1e-3)
    learner.served()
