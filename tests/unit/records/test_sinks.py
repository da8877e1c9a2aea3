"""TensorBoard's files read by its own reader; a missing package is said; a broken sink costs a warning."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from raylign.conf.errors import UserError
from raylign.conf.schema import AlgorithmConfig, RunConfig, TrackingConfig
from raylign.conf.schema import Sink as SinkName
from raylign.records.alerts import Alert
from raylign.records.metrics_log import read_history
from raylign.records.other_sinks import require_sinks
from raylign.records.run_folder import RunPaths
from raylign.records.sinks import Artifact, SinkThread
from raylign.records.tracking import Tracker


def test_tensorboard_gets_every_finite_number_and_the_alerts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = RunConfig(algorithm=AlgorithmConfig(name="ppo"), tracking=TrackingConfig(sinks=[SinkName.tensorboard]))
    said: list[str] = []
    tracker = Tracker(RunPaths(tmp_path), config, resumed_step=None, environ={}, say=said.append)
    for step in (1, 2, 3):
        tracker.log(step, {"reward/mean": step / 4, "policy/kl": float("nan") if step == 2 else 0.5})
    tracker.finish(exit_code=0)
    assert tracker.where == {"TensorBoard": str(tmp_path / "tensorboard")}
    assert f"TensorBoard: {tmp_path}/tensorboard" in said
    assert not any(sentence.startswith("Weights") for sentence in said) and not (tmp_path / "wandb").exists()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert [e.step for e in read.Scalars("policy/kl")] == [1, 3]
    assert "alerts/text_summary" in read.Tags()["tensors"]


@pytest.mark.parametrize("names", [[SinkName.trackio], [SinkName.wandb, SinkName.trackio]])
def test_a_missing_package_is_one_sentence(names: list[SinkName], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trackio" else object())
    with pytest.raises(UserError, match=r"tracking.sinks names trackio.*`pip install trackio`"):
        require_sinks(names)
    require_sinks([SinkName.wandb, SinkName.tensorboard])


class Breaks:
    """A sink whose second step fails."""

    where = "nowhere"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append(f"step {step}")
        if step == 2:
            raise OSError("gone")

    def samples(self, rows: Sequence[Sequence[object]]) -> None: ...
    def alert(self, alert: Alert) -> None: ...
    def artifact(self, artifact: Artifact) -> None: ...

    def finish(self, exit_code: int) -> None:
        self.calls.append("finish")

    def close(self) -> None:
        self.calls.append("close")


def test_a_sink_that_fails_is_closed_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    sink = Breaks()
    thread = SinkThread("board", lambda: sink, said=lambda _: None)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3, 4):
            thread.put(lambda opened, s=step: opened.log(s, {}))
        thread.finish(0, 10.0)
    assert sink.calls == ["step 1", "step 2", "close"] and not thread.ended
    assert [r.message for r in caplog.records] == ["board stopped (OSError: gone); metrics.jsonl goes on"]


def test_without_sinks_there_is_metrics_jsonl(tmp_path: Path) -> None:
    config = RunConfig(algorithm=AlgorithmConfig(name="ppo"), tracking=TrackingConfig(sinks=[]))
    tracker = Tracker(RunPaths(tmp_path), config, resumed_step=None, environ={"WANDB_API_KEY": "k" * 40})
    tracker.log(1, {"reward/mean": 1.0})
    tracker.finish(exit_code=0)
    tracker.finish(exit_code=0)
    assert tracker.where == {} and [row.step for row in read_history(tmp_path / "metrics.jsonl").rows] == [1]


class Notes:
    """A sink that writes down which steps it was told, over all lives."""

    where = "here"

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)

    def finish(self, exit_code: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def test_only_after_a_life_that_did_not_end_in_order_are_steps_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(algorithm=AlgorithmConfig(name="ppo"), tracking=TrackingConfig(sinks=[SinkName.tensorboard]))
    told: list[int] = []
    monkeypatch.setattr("raylign.records.tracking.TensorBoardSink", lambda target: Notes(told))

    def life(first: int, last: int, *, orderly: bool) -> list[int]:
        told.clear()
        resumed = first - 1 if first > 1 else None
        tracker = Tracker(RunPaths(tmp_path), config, resumed_step=resumed, environ={})
        for step in range(first, last + 1):
            tracker.log(step, {"reward/mean": 1.0})
        if orderly:
            tracker.finish(exit_code=0)
        else:
            for sink in tracker._sinks:
                sink.finish(1, 10.0)  # the thread ends, and nobody notes it
        return list(told)

    assert life(1, 4, orderly=True) == [1, 2, 3, 4]
    assert life(4, 6, orderly=False) == [4, 5, 6]
    assert life(6, 7, orderly=False) == [4, 5, 6, 7], "3 was on disk before, and 4 was done again"
    assert life(8, 8, orderly=True) == [4, 5, 6, 7, 8]
    assert life(9, 9, orderly=True) == [9]
