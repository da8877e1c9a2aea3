"""An engine core on a thread: what it raises is raised, a death is said, and an end frees it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

vllm_core_thread = pytest.importorskip("raylign.rollout.vllm_core_thread")


class Core:
    """Stands where vLLM's core does."""

    fails_at = ""
    made: Core | None = None

    def __init__(self, config: object, addresses: object) -> None:
        if self.fails_at == "load":
            raise ValueError("no such model")
        self.told: list[str] = []
        self.input_queue = SimpleNamespace(put_nowait=lambda item: self.told.append("woken"))
        self.shutdown_state: object = None
        type(self).made = self

    def run_busy_loop(self) -> None:
        if self.fails_at == "step":
            raise RuntimeError("bad step")
        raise SystemExit

    def _send_engine_dead(self) -> None:
        self.told.append("dead")

    def shutdown(self) -> None:
        self.told.append("freed")


def start(monkeypatch: pytest.MonkeyPatch, fails_at: str) -> None:
    monkeypatch.setattr(Core, "fails_at", fails_at)
    monkeypatch.setattr(vllm_core_thread, "_LocalCore", Core)
    monkeypatch.setattr(
        vllm_core_thread, "AsyncLLM", SimpleNamespace(from_vllm_config=lambda *_, **given: given["client_addresses"])
    )
    thread = vllm_core_thread.CoreThread({})
    found = asyncio.run(asyncio.wait_for(thread.start([]), 30))
    assert found["input_address"] != found["output_address"]
    thread.stop(30)


def test_what_the_model_raises_while_it_is_loaded_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no such model"):
        start(monkeypatch, "load")


def test_a_core_that_dies_says_so_to_its_client_and_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "step")
    assert Core.made is not None
    assert [what for what in Core.made.told if what != "woken"] == ["dead", "freed"]


def test_a_core_that_was_asked_to_end_is_freed_and_reports_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "")
    assert Core.made is not None
    assert [what for what in Core.made.told if what != "woken"] == ["freed"]
