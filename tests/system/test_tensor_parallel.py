"""An engine of two tensor-parallel ranks (vLLM's CPU backend) serves what was published, by both kinds of digest."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from raylign.conf.schema import Precision, RolloutConfig, SyncConfig
from raylign.data.sample_model import tiny_model
from raylign.rollout.fingerprint import DigestKind
from raylign.rollout.interfaces import EngineDead, WeightUpdateError
from torch import Tensor

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


@pytest.mark.parametrize("kind", list(DigestKind))
def test_a_broadcast_reaches_both_ranks_and_what_they_serve_is_the_same_as_from_buckets(
    bench: Bench, tmp_path: Path, kind: DigestKind
) -> None:
    bench.perturb(3)
    sent = bench.publish_by_broadcast(kind=kind)
    assert sent.passed(1e-3), sent
    bench.run(bench.engine.resume(bench.version))
    stored = bench.publish(tmp_path, kind=kind)
    assert stored.passed(1e-3) and stored.digests == sent.digests
    bench.run(bench.engine.resume(bench.version))


@pytest.mark.thorough
@pytest.mark.parametrize("phase", ["before", "met", "half-way", "finish"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_rank_that_is_lost_in_a_broadcast_is_a_named_failure_not_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: int, phase: str
) -> None:
    bench = Bench(tiny_model(tmp_path / "model", tie=True), config=CONFIG, sync=SyncConfig(timeout_s=20))
    try:
        assert bench.publish_by_broadcast().passed(1e-3)
        bench.run(bench.engine.resume(bench.version))
        ranks = [p for p in psutil.Process().children(recursive=True) if "Worker_TP1" in p.name()]
        assert ranks, [p.name() for p in psutil.Process().children(recursive=True)]
        lost = partial(os.kill, ranks[-1].pid, how)
        if phase == "before":
            lost()
        monkeypatch.setattr(bench, "finish", partial(_then, lost if phase == "finish" else _nothing, bench.finish))
        with pytest.raises((EngineDead, WeightUpdateError), match="rollout/0"):
            bench.publish_by_broadcast(
                Losing(bench.weights(), lost) if phase == "half-way" else None,
                timeout_s=4.0,
                joined=lost if phase == "met" else _nothing,
            )
        with pytest.raises(EngineDead, match="rollout/0"):
            bench.run(bench.engine.ping())
    finally:
        for process in psutil.Process().children(recursive=True):
            if process.name().startswith("VLLM"):
                process.kill()  # a stopped one too
        bench.close()


def _nothing() -> None:
    """No fault."""


def _then(first: Callable[[], None], call: Callable[[], object]) -> object:
    first()
    return call()


class Losing(dict[str, Tensor]):
    """Weights of which the tenth is sent after `lost` was called."""

    def __init__(self, weights: Mapping[str, Tensor], lost: Callable[[], None]) -> None:
        super().__init__(weights)
        self._lost = lost

    def items(self) -> Iterator[tuple[str, Tensor]]:  # type: ignore[override]
        for index, item in enumerate(super().items()):
            if index == 10:
                self._lost()
            yield item
