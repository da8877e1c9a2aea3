"""The one Ray that a module's runs share, and the one PPO run that several modules look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from raylign.cluster.session import Session, session
from raylign.conf.schema import ClusterConfig
from raylign.records.run_folder import RunPaths

from tests.system.tiny_runs import PPO_STEPS, RULE, play, question_rows, run_settings

RAY_CPUS = 4.0
"""Counted, not taken: the roles take turns on the cores."""


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty prompts: the second epoch begins within a run."""
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text(question_rows(20))
    return path


@pytest.fixture(scope="session")
def ppo_settings(tiny_model_dir: Path, questions: Path) -> list[str]:
    """PPO with everything that has state: critic, adaptive KL, normalised rewards. Without name and run_root."""
    given = run_settings("ppo", tiny_model_dir, questions, Path("unused"))
    return [
        *(s for s in given if not s.startswith("run_root=")), f"num_steps={PPO_STEPS}", "algorithm.kl_target=0.5",
        "algorithm.kl_controller=adaptive", "algorithm.kl_horizon=200", "reward.normalize=true",
        "policy.optim.schedule=linear",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def ppo_run(ppo_settings: list[str], questions: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """The finished run, held-out prompts and their fluency included."""
    root = tmp_path_factory.mktemp("runs")
    held_out = [f"data.eval={questions}", "evaluation.prompts=4", "evaluation.fluency=true"]
    held_out += [f"evaluation.gold={RULE.partition(':')[0]}"]
    return play([*ppo_settings, *held_out, "name=whole", f"run_root={root}"])


@pytest.fixture(scope="module")
def ray_session() -> Iterator[Session]:
    """One Ray for the runs of a module. A test that also wants `ppo_run` gets that first: it has a Ray of its own."""
    assert "RAY_ADDRESS" not in os.environ, "the tests start a Ray of their own; unset RAY_ADDRESS"
    with session(ClusterConfig(object_store_gb=0.2), num_cpus=RAY_CPUS) as opened:
        yield opened
