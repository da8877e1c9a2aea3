"""kill -9 at a random moment, the same command again: every byte that is saved equals the undisturbed run's.

The run is killed as often as its seed says, at moments that fall anywhere: while it starts, computes, saves.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from raylign.app.configuration import compose
from raylign.app.main import run as run_here
from raylign.cluster.session import Session
from raylign.conf.errors import RunFailed
from raylign.records.manifest import read_manifest
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from rich.console import Console

from tests.system.test_offline_modes import data  # noqa: F401  the rows
from tests.system.tiny_runs import play, run_settings
from tests.system.wandb_files import drawn

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

RAYLIGN = Path(sys.executable).with_name("raylign")
STEPS = 6
DEADLINE_S = 600
CLOCK = (
    "time/",
    "perf/",
    "sync/seconds",
    "policy/seconds",
    "critic/seconds",
    "train/seconds",
    "rollout/tokens_per_s",
    "rollout/idle_share",
    "engine/",
)


def offline(algorithm: str, model: Path, rows: Path, root: Path) -> list[str]:
    return [
        f"+experiment={algorithm}_tiny_cpu", f"policy.model={model}", f"data.train={rows}", f"run_root={root}",
        f"num_steps={STEPS}", "checkpoint.every=1", "checkpoint.keep=2", "policy.optim.lr=1e-3", "policy.num_ranks=2",
        "tracking.wandb=disabled",
    ]  # fmt: skip


def online(algorithm: str, model: Path, prompts: Path, root: Path) -> list[str]:
    adaptive = ["algorithm.kl_target=0.5", "algorithm.kl_controller=adaptive", "algorithm.kl_horizon=200"]
    state = [*adaptive, "reward.normalize=true", "policy.optim.schedule=linear"] if algorithm == "ppo" else []
    return [*run_settings(algorithm, model, prompts, root), *state, f"num_steps={STEPS}", "checkpoint.every=1"]


def saved_bytes(run: RunPaths, step: int = STEPS) -> dict[str, str]:
    """sha256 of every file of a checkpoint and of the export; the count of starts is not part of the state."""
    digests = {}
    for folder in (run.checkpoints / f"step-{step:06d}", run.export / f"step-{step}"):
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            content = file.read_bytes()
            if file.suffix == ".safetensors":  # its writer puts the entries of the metadata in any order
                end = 8 + int.from_bytes(content[:8], "little")
                content = json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]
            if file.name == "state.json":
                content = json.dumps({**json.loads(content), "run_generation": 0}).encode()
            if file.name not in ("manifest.json", "README.md"):  # made of the others' hashes; names the run
                digests[str(file.relative_to(folder.parent.parent))] = hashlib.sha256(content).hexdigest()
    assert len(digests) >= 4, f"{run.path} holds no state to compare"
    return digests


def numbers(run: RunPaths) -> dict[int, dict[str, float | None]]:
    lines = [line for line in run.metrics.read_text().splitlines() if line]
    rows = read_history(run.metrics).rows
    assert len(lines) == len(rows), "a step is told twice"
    return {row.step: {k: v for k, v in row.values.items() if not k.startswith(CLOCK)} for row in rows}


def _wandb_has_every_number(run: RunPaths) -> None:
    """One W&B run over all lives; what it draws at a step is what metrics.jsonl has."""
    folders = list(run.path.glob("wandb/offline-run-*"))
    assert len(folders) >= 2 and len({path.name.rpartition("-")[2] for path in folders}) == 1
    curves, mine = drawn(run.path), numbers(run)
    assert curves.keys() == mine.keys()
    for step, values in mine.items():
        assert {n: curves[step].get(n) for n, v in values.items() if v is not None} == {
            n: v for n, v in values.items() if v is not None
        }, step


def _kill(settings: list[str], run: RunPaths, log: Path, *, after_step: int, when: Callable[[], bool]) -> bool:
    """One life, ended by kill -9 once `when` holds after step `after_step`; False when it was over before."""
    with log.open("ab") as file:
        process = subprocess.Popen([RAYLIGN, "train", *settings], stdout=file, stderr=file, env=dict(os.environ))
    try:
        deadline = time.monotonic() + DEADLINE_S
        while (len(read_history(run.metrics).rows) < after_step or not when()) and process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.001)
        alive = process.poll() is None
        process.kill()
        return alive
    finally:
        process.kill()
        process.wait(30)


def play_through_kills(settings: list[str], run: RunPaths, log: Path, *, seed: int) -> None:
    """kill -9 of the driver twice, a random moment after a step, and once while a checkpoint is being written."""
    draw = random.Random(seed)

    def anywhere() -> bool:
        time.sleep(draw.random())
        return True

    def writing() -> bool:
        return any(run.checkpoints.glob(".tmp-*"))

    kills = [
        _kill(settings, run, log, after_step=step, when=when)
        for step, when in ((1, anywhere), (3, anywhere), (4, writing))
    ]
    assert any(kills[:2]), "the run was over before anything was killed: the test shows nothing"
    assert not kills[2] or writing(), "the kill came after the checkpoint was whole"
    with log.open("ab") as file:
        ended = subprocess.run([RAYLIGN, "train", *settings], stdout=file, stderr=file, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 0, log.read_text()[-4000:]


@pytest.mark.thorough
@pytest.mark.parametrize("algorithm", ["sft", "rm", "dpo", "ppo", "grpo"])
def test_killed_and_resumed_is_the_run_that_was_never_killed(
    algorithm: str,
    tiny_model_dir: Path,
    questions: Path,
    data: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    rows = data.get({"rm": "dpo"}.get(algorithm, algorithm), questions)
    make = offline if algorithm in ("sft", "rm", "dpo") else online
    settings = make(algorithm, tiny_model_dir, rows, tmp_path)
    whole = play([*settings, "name=whole"])
    killed = RunPaths(tmp_path / "killed")
    told = [*settings, "name=killed", "tracking.wandb=offline"]
    play_through_kills(told, killed, tmp_path / "log", seed=17)
    assert numbers(killed) == numbers(whole)
    _wandb_has_every_number(killed)
    assert saved_bytes(killed) == saved_bytes(whole)

    other = play([*settings, "name=other", "seed=1"])  # the comparison can fail
    assert saved_bytes(other) != saved_bytes(whole)


def test_a_damaged_checkpoint_is_passed_over_aloud_and_costs_no_bit(
    tiny_model_dir: Path,
    data: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    ray_session: Session,
) -> None:
    settings = offline("sft", tiny_model_dir, data["sft"], tmp_path)
    whole = play([*settings, "name=whole"], ray_session)
    first = play([*settings, "name=torn", "num_steps=4"], ray_session)
    newest = first.checkpoints / "step-000004"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)

    screen = StringIO()
    run_here(compose([*settings, "name=torn"]), console=Console(file=screen), ray_session=ray_session)
    said = screen.getvalue()
    assert "warning: skipped step-000004" in said and "resuming from step 3" in said
    assert saved_bytes(first) == saved_bytes(whole) and numbers(first) == numbers(whole)
    assert "step-000004" in first.report.read_text() and "the run resumed from step 3" in first.report.read_text()
    start = read_manifest(first.manifest).current
    assert start.resumed_step == 3 and len(start.skipped) == 1


@pytest.mark.thorough
def test_a_run_that_destroys_its_policy_does_not_end_well(
    tiny_model_dir: Path, questions: Path, tmp_path: Path, ray_session: Session
) -> None:
    given = run_settings("grpo", tiny_model_dir, questions, tmp_path)
    settings = [s for s in given if not s.startswith("policy.optim.lr=")]
    with pytest.raises(RunFailed, match=r"the gradient has been exactly 0 .* a lower policy\.optim\.lr"):
        play([*settings, "policy.optim.lr=1e6", "num_steps=8", "name=destroyed"], ray_session)
    assert not list((tmp_path / "destroyed" / "export").glob("step-*"))
