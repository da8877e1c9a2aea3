"""A run whose policy goes wrong goes back to its best checkpoint, and the resume goes on from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.cluster.session import Session
from raylign.conf.errors import Preempted
from raylign.records.alert_watch import read_alerts
from raylign.records.alerts import AlertKind
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.trainer.checkpoint import CheckpointStore

from tests.system.tiny_runs import play

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_back_to_the_best_checkpoint_and_on_from_there(
    ppo_settings: list[str], tmp_path: Path, ray_session: Session
) -> None:
    given = [
        *(s for s in ppo_settings if not s.startswith(("num_steps=", "policy.optim.lr="))), f"run_root={tmp_path}",
        "name=guarded", "checkpoint.every=1", "checkpoint.keep=8",
    ]  # fmt: skip
    play([*given, "num_steps=6", "policy.optim.lr=1e-5"], ray_session)
    wild = ["num_steps=14", "policy.optim.lr=2e-2", "guard.kl=rollback", "guard.kl_limit=1"]
    with pytest.raises(Preempted) as ended:
        play([*given, *wild], ray_session)

    folder = RunPaths(tmp_path / "guarded")
    [sign] = [one for one in read_alerts(folder.alerts) if one.kind is AlertKind.KL_RUNAWAY]
    latest = CheckpointStore(folder.checkpoints, keep=8).latest()
    assert latest is not None and 1 <= latest.state.step <= sign.step - 5
    assert f"went back to step {latest.state.step}, whose model is" in str(ended.value)
    assert "resume with: raylign train" in ended.value.problems[-1]
    assert (folder.export / f"step-{latest.state.step}" / "model.safetensors").is_file()
    assert read_history(folder.metrics).rows[-1].step == sign.step, "what happened stays to be read"

    play([*given, "num_steps=12", "policy.optim.lr=1e-5"], ray_session)

    assert [row.step for row in read_history(folder.metrics).rows] == list(range(1, 13))
    assert (folder.export / "step-12" / "model.safetensors").is_file()
