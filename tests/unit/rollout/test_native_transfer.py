"""A native transfer that breaks half-way leaves the engine ready for the next publication."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from raylign.conf.schema import RolloutConfig, SyncConfig
from raylign.rollout.interfaces import WeightManifest, WeightUpdateError
from torch import nn

vllm_engine = pytest.importorskip("raylign.rollout.vllm_engine")
vllm_extension = pytest.importorskip("raylign.rollout.vllm_extension")


class Session:
    """vLLM's worker as far as a weight update goes: it refuses a second session (vllm/v1/worker/gpu_worker.py)."""

    def __init__(self) -> None:
        self._weight_update_active = False
        self.finished = 0

    def start_weight_update(self) -> None:
        if self._weight_update_active:
            raise RuntimeError("start_weight_update called while a weight update is already active.")
        self._weight_update_active = True

    def finish_weight_update(self) -> None:
        self._weight_update_active = False
        self.finished += 1


class Worker(vllm_extension.WeightReceiver, Session):
    """With our extension mixed in, as vLLM does it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model_runner = SimpleNamespace(
            get_model=lambda: model, model_config=SimpleNamespace(dtype=next(model.parameters()).dtype)
        )


def test_a_sender_that_died_does_not_block_the_next_publication() -> None:
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(tie_word_embeddings=False)
    type(model).load_weights = lambda self, weights: None
    try:
        worker = Worker(model)
        for attempt in range(2):
            worker.raylign_begin([["weight", [2, 2], "float32", ""], ["bias", [2], "float32", ""]], False, 0, 1, True)
            worker.start_weight_update()  # the second time vLLM refuses, unless the first session was closed
            assert worker.finished == attempt
    finally:
        del nn.Linear.load_weights


def test_what_a_native_call_raises_is_a_failed_update_not_a_dead_engine() -> None:
    engine = vllm_engine.VLLMEngine("folder", RolloutConfig(), SyncConfig(timeout_s=5))

    async def refuse(*_: object) -> None:
        raise Exception("start_weight_update called while a weight update is already active")

    engine._llm = SimpleNamespace(
        start_weight_update=refuse,
        update_weights=refuse,
        finish_weight_update=refuse,
        init_weight_transfer_engine=refuse,
    )
    engine._manifest = WeightManifest(1, (), False)
    for call in (
        lambda: engine.start_native_update(),
        lambda: engine.receive_native_weights({}),
        lambda: engine.finish_native_update(),
        lambda: engine.init_native_transfer({}),
    ):
        with pytest.raises(WeightUpdateError, match="rollout/0: "):
            asyncio.run(call())
