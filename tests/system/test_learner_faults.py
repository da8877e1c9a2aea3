"""A learner rank is killed or stopped: the group is built anew inside the job, and the run ends in the same bits."""

from __future__ import annotations

import signal
import time
from io import StringIO
from pathlib import Path

import pytest
from raylign.app.configuration import compose
from raylign.app.main import run as run_here
from raylign.cluster.errors import RoleError
from raylign.cluster.session import Session
from raylign.records.ledger_check import check_ledger
from raylign.records.run_folder import RunPaths
from rich.console import Console

from tests.system.role_processes import Faults
from tests.system.test_bit_equal import numbers, offline, online, saved_bytes
from tests.system.test_offline_modes import data  # noqa: F401  the rows
from tests.system.tiny_runs import play

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

HANG_S = 20
"""cluster.step_timeout_s of a run whose rank hangs: long beyond any step here."""


def told(settings: list[str], session: Session | None) -> tuple[RunPaths, str]:
    screen = StringIO()
    return run_here(compose(settings), console=Console(file=screen, width=400), ray_session=session), screen.getvalue()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(alive, pids))


def test_a_killed_and_a_hung_rank_cost_no_bit(
    tiny_model_dir: Path,
    data: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    ray_session: Session,
) -> None:
    """SFT on two ranks under DeepSpeed; once killed before any checkpoint, once stopped after one."""
    settings = [s for s in offline("sft", tiny_model_dir, data["sft"], tmp_path) if s != "checkpoint.every=1"]
    settings += ["checkpoint.every=3", f"cluster.step_timeout_s={HANG_S}"]
    whole = play([*settings, "name=whole"], ray_session)
    for name, number, after in (("killed", signal.SIGKILL, 1), ("hung", signal.SIGSTOP, 4)):
        run = RunPaths(tmp_path / name)
        with Faults(run, "policy-1", number, (after,)) as faults:
            _, screen = told([*settings, f"name={name}"], ray_session)
        assert len(faults.hit) == 1, "the run was over before its rank was hit: the test shows nothing"
        assert screen.count("the learners are started again (1 of 3") == 1, screen
        assert gone(faults.hit), "a rank of the old group lives on"
        assert numbers(run) == numbers(whole), name
        assert saved_bytes(run) == saved_bytes(whole), name


def test_a_rank_that_dies_again_and_again_ends_the_run_at_the_cap(
    tiny_model_dir: Path,
    data: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    ray_session: Session,
) -> None:
    settings = [*offline("sft", tiny_model_dir, data["sft"], tmp_path), "cluster.max_rebuilds=0", "name=capped"]
    with (
        Faults(RunPaths(tmp_path / "capped"), "policy-1", signal.SIGKILL, (4,)) as faults,
        pytest.raises(RoleError, match="policy rank 1 died") as failure,
    ):
        play(settings, ray_session)
    assert failure.value.exit_code == 70 and faults.hit
    assert "; cluster.max_rebuilds=0; last good step" in failure.value.problems[-1]


@pytest.mark.thorough
@pytest.mark.parametrize("victim", ["policy-1", "critic-0", "assembler-0"])
def test_online_the_journaled_batches_are_trained_again(
    victim: str, tiny_model_dir: Path, questions: Path, tmp_path: Path, ray_session: Session
) -> None:
    """PPO with critic, adaptive KL, normalised rewards and two policy ranks; hit twice, three steps apart."""
    settings = [s for s in online("ppo", tiny_model_dir, questions, tmp_path) if s != "checkpoint.every=1"]
    settings += ["checkpoint.every=4", "policy.num_ranks=2", "checkpoint.journal=all"]
    whole = play([*settings, "name=whole"], ray_session)
    run = RunPaths(tmp_path / "hurt")
    with Faults(run, victim, signal.SIGKILL, (2, 5)) as faults:
        _, screen = told([*settings, "name=hurt"], ray_session)
    assert len(faults.hit) == 2 and screen.count("the learners are started again (1 of 3") == 2, screen
    assert numbers(run) == numbers(whole)
    assert saved_bytes(run) == saved_bytes(whole)
    report = check_ledger(run.path, max_staleness=0)
    assert report is not None and report.problems == () and report.starts == 3
    assert report.done_again >= 2 and report.other_samples == 0, "other samples were drawn for a step done again"
    assert "trained again on the samples that the run had drawn" in screen
