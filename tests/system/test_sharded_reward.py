"""A reward replica whose model lies in parts on its ranks scores as the whole model; one that loses a rank says so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from raylign.conf.errors import ModelLoadError
from raylign.conf.schema import Device, Precision
from raylign.data.sample_model import tiny_model
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.reward.interfaces import ModelLost
from raylign.reward.model_forward import ShardedForward
from raylign.reward.model_scorer import ModelScorer

from tests.system.role_processes import newest, role_process
from tests.system.tiny_runs import play, question_rows, run_settings
from tests.unit.reward.test_model_scorer import save_reward_model, scorer, sequences

pytestmark = [pytest.mark.system, pytest.mark.slow]

RANKS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tiny_model(tmp_path_factory.mktemp("base") / "tiny", tie=True)
    return save_reward_model(tmp_path_factory.mktemp("rm") / "rm", base)


@pytest.fixture(scope="module")
def sharded(folder: Path) -> Iterator[ModelScorer]:
    made = ModelScorer(str(folder), precision=Precision.float32, device=Device.cpu, micro_batch_tokens=200, ranks=RANKS)
    yield made
    made._forward.stop()


def test_scores_features_and_head_are_those_of_the_whole_model(folder: Path, sharded: ModelScorer) -> None:
    whole = scorer(folder)
    assert sharded.head.tolist() == whole.head.tolist()
    for count in (9, 1, 0, 20):  # more and fewer micro-batches than ranks
        rows = sequences(count)
        assert sharded.score(rows, [1] * count) == pytest.approx(whole.score(rows, [1] * count), abs=1e-5)
        ours, theirs = sharded.features(rows, [1] * count), whole.features(rows, [1] * count)
        assert ours.tolist() == [pytest.approx(row, abs=1e-4) for row in theirs.tolist()]


def test_a_folder_that_is_no_reward_model_is_refused_as_by_one_process(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "tiny", tie=True)
    with pytest.raises(ModelLoadError, match="without a scalar head"):
        ShardedForward(str(base), precision=Precision.float32, device=Device.cpu, ranks=RANKS)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_rank_is_named_and_no_rank_is_left(folder: Path, how: int) -> None:
    made = ShardedForward(str(folder), precision=Precision.float32, device=Device.cpu, ranks=RANKS, timeout_s=300.0)
    made._timeout_s = 5.0
    os.kill(made.processes[1].pid or 0, how)
    with pytest.raises(ModelLost, match=r"^part [01] of the reward model"):
        made.ask([[[(5, 6, 7)]], [[(5, 6)]]], features=False)
    for process in made.processes:
        process.join(10)
        assert process.exitcode is not None


@pytest.mark.thorough
@pytest.mark.timeout(400)
def test_a_run_trains_on_a_replica_whose_model_lies_in_parts_and_that_loses_one(folder: Path, tmp_path: Path) -> None:
    model, rows = tiny_model(tmp_path / "policy", tie=True), tmp_path / "rows.jsonl"
    rows.write_text(question_rows(16))
    settings = [one for one in run_settings("grpo", model, rows, tmp_path) if not one.startswith("reward.rules")]
    parts = [f"reward.model={folder}", "reward.precision=float32", f"reward.ranks_per_replica={RANKS}"]
    paths, ended, hit = RunPaths(tmp_path / "parts"), threading.Event(), list[int]()

    def lose_a_part() -> None:
        while not ended.wait(0.05):
            if newest(paths) >= 1 and (replica := role_process(paths, "reward-0")) is not None:
                hit.append(psutil.Process(replica).children()[-1].pid)
                os.kill(hit[0], signal.SIGKILL)
                return

    thread = threading.Thread(target=lose_a_part, daemon=True)
    thread.start()
    try:
        run = play([*settings, *parts, "num_steps=4", "name=parts"])
    finally:
        ended.set()
        thread.join(10)
    history = read_history(run.metrics)
    assert [step for step, _ in history.series("reward/model")] == [1, 2, 3, 4]
    assert sum(value or 0 for _, value in history.series("reward/failed")) == 0
    said = (run.logs / "reward-0.log").read_text()
    assert len(hit) == 1 and "the replica ends" in said and said.count("rank 0 of 1") == 2
