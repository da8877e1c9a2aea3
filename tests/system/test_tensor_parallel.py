"""An engine of two tensor-parallel ranks (vLLM's CPU backend) serves what was published, by both kinds of digest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from raylign.conf.schema import Precision, RolloutConfig
from raylign.data.sample_model import tiny_model
from raylign.rollout.fingerprint import DigestKind

from tests.system.test_weights import Bench

pytestmark = [pytest.mark.system, pytest.mark.slow]

CONFIG = RolloutConfig(
    precision=Precision.float32, tensor_parallel_size=2, max_model_len=256, kv_cache_gb=0.25, max_concurrent=8
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder: Path = tiny_model(tmp_path_factory.mktemp("tp") / "model", tie=True)
    made = Bench(folder, config=CONFIG)
    yield made
    made.close()


@pytest.mark.parametrize("kind", list(DigestKind))
def test_both_ranks_serve_the_published_weights(bench: Bench, tmp_path: Path, kind: DigestKind) -> None:
    bench.perturb(1)
    report = bench.publish(tmp_path, kind=kind)
    assert report.passed(1e-3), report
    bench.run(bench.engine.resume(bench.version))


@pytest.mark.parametrize("kind", list(DigestKind))
def test_a_fault_in_what_one_rank_serves_is_found(bench: Bench, tmp_path: Path, kind: DigestKind) -> None:
    bench.perturb(2)
    sent = bench.weights()
    names = ["model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight"]
    with torch.no_grad():
        sent[names[0]][-1, 3] += 1e-6  # rows of the second rank
        sent[names[1]][2, 5] += 1e-6  # columns of the first
    report = bench.publish(tmp_path, sent, kind=kind)
    assert set(report.mismatched) == set(names) and report.missing == ()
    assert bench.publish(tmp_path, kind=kind).passed(1e-3)
