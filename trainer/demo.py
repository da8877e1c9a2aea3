"""`raylign demo`: from a user's clicks to a better model, on two CPU cores, with every role real.

act 1   SmolLM2 answers questions twice; a simulated user with a stated taste picks a side
act 2   a reward model learns those picks                       (algorithm=rm)
act 3   PPO trains the policy against the reward-model server   (algorithm=ppo)
end     held-out questions, before and after: what the user prefers, and whether the language was kept
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from rich.console import Console

from cluster.runtime_env import RoleEnv
from cluster.session import session
from conf.model_folder import model_folder
from conf.schema import ClusterConfig, Device, Precision, RolloutConfig, SyncConfig
from data.loading import RawRow, read_rows
from data.sample_model import prepare_sample_model
from data.tokenize import Encoder, load_tokenizer
from data.types import Prompt, RolloutGroup
from feedback.collect import collect_picks, write_picks
from feedback.simulated_user import SimulatedUser
from reward.rules import concise
from rollout.interfaces import GenerationRequest
from rollout.worker import WorkerSpec, spawn_worker
from trainer.configuration import compose
from trainer.main import run as train
from trainer.progress import duration, figures_of, show_ending
from trainer.summary import read_summary, write_summary
from trainer.workers.experience import ObjectReader

USER_NOISE = 0.33
"""Taste units: the simulated user picks the better of two answers that differ by 1 in 95 of 100 cases."""

MAX_NEW_TOKENS = 64

NUM_QUESTIONS = 140
"""Questions answered twice for the user to pick."""

HELD_OUT_EVERY = 5
"""Every so-manieth pick is kept from the reward model, to measure it."""

RAY_CPUS = 4.0
"""Counted, not taken: the roles take turns on the cores."""

DEADLINE_S = 300.0


def run(*, seed: int, run_root: Path) -> int:
    """Play all acts; returns the exit code. Raises RaylignError when one cannot be played."""
    console = Console()
    started = time.monotonic()
    stage = run_root.absolute() / f"demo-{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}"
    model = prepare_sample_model()
    common = [f"run_root={stage}", f"seed={seed}", f"policy.model={model}"]
    cluster = ClusterConfig(object_store_gb=1.0)
    with session(cluster, num_cpus=RAY_CPUS) as ray_session:
        _act(console, started, "1", f"{model.name} answers questions twice, a simulated user picks")
        picks, held_out = asyncio.run(_collect(model, stage, seed))
        _act(console, started, "2", "a reward model learns the picks")
        train(
            compose(
                [
                    "+experiment=demo_reward_model",
                    "name=reward-model",
                    *common,
                    f"data.train={picks}",
                    f"data.eval={held_out}",
                ]
            ),
            console=console,
            ray_session=ray_session,
        )
        reward_model = model_folder(str(stage / "reward-model")).path
        _act(console, started, "3", "PPO trains the policy against the reward-model server")
        questions = files("data") / "demo"
        folder = train(
            compose(
                [
                    "+experiment=demo_ppo",
                    "name=policy",
                    *common,
                    f"reward.model={reward_model}",
                    f"data.train={questions / 'train.jsonl'}",
                    f"data.eval={questions / 'held_out.jsonl'}",
                ]
            ),
            console=console,
            ray_session=ray_session,
        )
    summary = replace(read_summary(folder.summary), seconds_total=time.monotonic() - started)
    write_summary(folder.summary, summary)
    show_ending(console, "held-out questions", figures_of(summary), {"report": str(folder.report)})
    return 0


async def _collect(model: Path, stage: Path, seed: int) -> tuple[Path, Path]:
    """Act 1: the files of picks to learn from and of picks held out."""
    rollout = RolloutConfig(
        precision=Precision.float32, max_model_len=192, kv_cache_gb=0.5, timeout_s=DEADLINE_S, threads_per_worker=2
    )
    worker = spawn_worker(
        WorkerSpec("rollout/feedback", str(model), rollout, SyncConfig(), Device.cpu, seed),
        options={"num_cpus": 1},
        env_vars=RoleEnv(Device.cpu, threads=2).variables(),
    )
    reader = ObjectReader(DEADLINE_S)
    encoder = Encoder(load_tokenizer(str(model)))

    def encode(question: str) -> Prompt:
        return Prompt(question, encoder.messages(question), encoder.encode_prompt(question))

    try:
        await worker.start(DEADLINE_S)

        async def ask(requests: Sequence[GenerationRequest]) -> list[RolloutGroup]:
            return [await reader.rollout_group(handle) for handle in await worker.generate(requests)]

        picks = await collect_picks(
            demo_questions()[:NUM_QUESTIONS],
            ask,
            encode,
            SimulatedUser(concise, USER_NOISE, seed),
            max_new_tokens=MAX_NEW_TOKENS,
            seed=seed,
        )
    finally:
        worker.kill()
    train_file, held_out_file = stage / "picks-train.jsonl", stage / "picks-held-out.jsonl"
    write_picks(train_file, [pick for i, pick in enumerate(picks) if i % HELD_OUT_EVERY])
    write_picks(held_out_file, picks[::HELD_OUT_EVERY])
    return train_file, held_out_file


def demo_questions() -> list[str]:
    """The training questions, in file order."""
    rows = read_rows(str(files("data") / "demo" / "train.jsonl"))
    return [str(row.columns["prompt"]) for row in rows if isinstance(row, RawRow)]


def _act(console: Console, started: float, number: str, what: str) -> None:
    console.print(f"[{duration(time.monotonic() - started)}] act {number}: {what}", markup=False, highlight=False)
