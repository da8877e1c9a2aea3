"""R34: a role whose memory is limited is killed by the kernel: said with the setting to lower, and it costs no step.

Engines are simulated (tests/soak/simulated.py); learner, rewards, assembler and driver are real.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from raylign.records.ledger_check import check_ledger
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths

from tests.soak.soak import start
from tests.system.role_processes import newest, role_process
from tests.system.tiny_runs import run_settings

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(900)]

GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT = 1 << 20
DEADLINE_S = 300


@pytest.fixture
def limited() -> Iterator[Path]:
    """A memory cgroup (v1) of one megabyte: what is put in dies of the next page. Skipped, aloud, without the right."""
    group = GROUPS / f"raylign-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"this user may not limit memory here: {error}")
    yield group
    time.sleep(1)
    group.rmdir()


def test_a_role_that_runs_out_of_memory_is_named_so(
    limited: Path, tiny_model_dir: Path, questions: Path, tmp_path: Path
) -> None:
    settings = [
        *run_settings("grpo", tiny_model_dir, questions, tmp_path), "name=tight", "num_steps=40",
        "rollout.num_workers=2", "rollout.health_timeout_s=15", "checkpoint.every=5", "checkpoint.journal=all",
        "cluster.object_store_gb=0.3", "policy.optim.lr=1e-5",
    ]  # fmt: skip
    run, log = RunPaths(tmp_path / "tight"), tmp_path / "log"
    process = start(settings, log)

    def wait_for(what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not what():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-6000:]
            time.sleep(0.1)

    def starve(role: str) -> None:
        pid = role_process(run, role)
        assert pid is not None
        (limited / "cgroup.procs").write_text(str(pid))
        wait_for(lambda: role_process(run, role) != pid)

    try:
        wait_for(lambda: newest(run) >= 3)
        starve("rollout-1")
        wait_for(lambda: read_history(run.metrics).latest()["rollout/workers"] == 1)
        wait_for(lambda: read_history(run.metrics).latest()["rollout/workers"] == 2)
        starve("policy-0")
        assert process.wait(DEADLINE_S) == 0, log.read_text()[-6000:]
    finally:
        process.kill()
    said = log.read_text()
    killed = "the kernel has killed 1 of this machine's processes for lack of memory: lower "
    [lost] = [line for line in said.splitlines() if line.startswith("rollout/1 is out of the pool")]
    assert f"{killed}rollout.max_concurrent" in lost
    [rebuilt] = [line for line in said.splitlines() if "the learners are started again" in line]
    assert "policy rank 0 died" in rebuilt and f"{killed}policy.micro_batch_tokens" in rebuilt
    report = check_ledger(run.path, max_staleness=0)
    assert report is not None and report.problems == () and report.other_samples == 0
    assert newest(run) == 40
