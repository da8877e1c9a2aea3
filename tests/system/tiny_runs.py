"""Whole runs on a tiny model: settings short enough for a test, and a way to play them in this process."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

from raylign.app.configuration import compose
from raylign.app.main import run
from raylign.cluster.session import Session
from raylign.records.run_folder import RunPaths
from rich.console import Console

PPO_STEPS = 6

RULE = "low_token_share:256"
"""Half of the tiny model's vocabulary, and a random model can learn to prefer it within a few steps."""


def question_rows(count: int) -> str:
    """`count` different short prompts, as JSONL."""
    words = ("apple", "river", "train", "letter", "light")
    rows = ({"prompt": f"What is a {words[i % 5]} {i}?", "id": f"q{i}"} for i in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows)


def run_settings(algorithm: str, model: Path, data: Path, root: Path) -> list[str]:
    """A run short enough for a test and long enough to learn `RULE`."""
    critic = [f"critic.model={model}", "algorithm.ppo_epochs=2"] if algorithm == "ppo" else []
    return [
        f"+experiment={algorithm}_tiny_cpu", f"policy.model={model}", *critic, f"data.train={data}",
        f"run_root={root}", f"reward.rules=[{{rule: '{RULE}'}}]", "policy.optim.lr=2e-3", "rollout.max_new_tokens=16",
        "rollout.prompts_per_step=8", "rollout.samples_per_prompt=8", "algorithm.sequences_per_update=32",
        "algorithm.kl_coef=0.01", "tracking.wandb=disabled",
    ]  # fmt: skip


def play(settings: list[str], ray_session: Session | None = None) -> RunPaths:
    """Train in this process."""
    return run(compose(settings), console=Console(file=StringIO()), ray_session=ray_session)
