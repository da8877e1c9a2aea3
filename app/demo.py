"""`raylign demo`: from a user's clicks to a better model, on two CPU cores, with every role real.

part 1  SmolLM2 answers questions twice; simulated people with a stated taste pick a side, and leave a log
        the log becomes training data, with a report            (as `raylign feedback build`)
part 2  a reward model learns the built pairs                   (algorithm=rm)
part 3  PPO trains the policy against the reward-model server   (algorithm=ppo)
end     held-out questions, before and after: what the user prefers, and whether the language was kept
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from raylign.app.configuration import compose
from raylign.app.main import run as train
from raylign.cluster import preloads
from raylign.cluster.runtime_env import RoleEnv
from raylign.cluster.session import session
from raylign.conf.model_folder import model_folder
from raylign.conf.schema import ClusterConfig, Device, Precision, RolloutConfig, SyncConfig
from raylign.data.encoder import Encoder
from raylign.data.loading import RawRow, read_rows
from raylign.data.sample_model import prepare_sample_model
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import Message, Prompt, RolloutGroup
from raylign.feedback.build import build
from raylign.feedback.build_result import BuildResult
from raylign.feedback.simulate import Group, Habits, Persona, ServedAnswers, Simulation, StatedRule, simulate
from raylign.feedback.source import Source
from raylign.records.progress import duration, figures_of, show_ending
from raylign.records.summary import read_summary, write_summary
from raylign.rollout.environment import launch_environment
from raylign.rollout.interfaces import GenerationRequest
from raylign.rollout.worker import WorkerSpec, spawn_worker
from raylign.trainer.workers.experience import ObjectReader
from rich.console import Console

PEOPLE = Group("visitor", 35, Habits(noise=0.33, tie_gap=1e-9), StatedRule())
"""Who picks. Noise is in taste units: the better of two answers that differ by 1 is picked in 95 of 100 cases; of two
that differ by nothing neither is."""

MAX_NEW_TOKENS = 64

NUM_QUESTIONS = 140
"""Questions answered twice for somebody to pick."""

BUILD = ("split.eval=0.2", "split.test=0")
"""A fifth of the people are kept from the reward model, to measure it; everything else is the build's default."""

RAY_CPUS = 4.0
"""Counted, not taken: the roles take turns on the cores."""

DEADLINE_S = 300.0

MINUTES = "five to seven"
"""As measured on two cores (docs/measurements.md), conversion of the model and first imports included."""


def run(*, seed: int, run_root: Path) -> int:
    """Run all parts; returns the exit code. Raises RaylignError when one cannot be run."""
    console = Console()
    started = time.monotonic()
    stage = run_root.absolute() / f"demo-{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}"
    length = f"three parts, {MINUTES} minutes on two cores that nothing else uses"
    console.print(length, markup=False, highlight=False, soft_wrap=True)
    model = prepare_sample_model()
    common = [f"run_root={stage}", f"seed={seed}", f"policy.model={model}"]
    cluster = ClusterConfig(object_store_gb=1.0)
    with session(cluster, num_cpus=RAY_CPUS) as ray_session:
        _part(console, started, "1", f"{model.name} answers questions twice, simulated users choose")
        log = asyncio.run(_collect(model, stage, seed))
        built = stage / "feedback"
        outcome = _became(build(Source(logs=(log,), overrides=BUILD), built))
        console.print(outcome, markup=False, highlight=False, soft_wrap=True)
        _part(console, started, "2", "a reward model learns the pairs")
        train(
            compose(
                [
                    "+experiment=demo_reward_model",
                    "name=reward-model",
                    *common,
                    f"data.train={built / 'pairs' / 'train.jsonl'}",
                    f"data.eval={built / 'pairs' / 'eval.jsonl'}",
                ]
            ),
            console=console,
            ray_session=ray_session,
        )
        reward_model = model_folder(str(stage / "reward-model")).path
        _part(console, started, "3", "PPO trains the policy against the reward-model server")
        questions = files("raylign.data") / "demo"
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
    left = {"report": str(folder.report), "feedback report": str(built / "report.html")}
    show_ending(console, "held-out questions", figures_of(summary), left)
    return 0


async def _collect(model: Path, stage: Path, seed: int) -> Path:
    """Part 1: the log of picks."""
    rollout = RolloutConfig(
        precision=Precision.float32, max_model_len=192, kv_cache_gb=0.5, timeout_s=DEADLINE_S, threads_per_worker=2
    )
    keys = RoleEnv(
        Device.cpu, threads=2, keeps_pages=True, preload=preloads.ENGINE
    )  # part 3's engine shares the server
    worker = spawn_worker(
        WorkerSpec("rollout/feedback", str(model), rollout, SyncConfig(), Device.cpu, seed),
        options={"num_cpus": 1},
        env_vars=launch_environment(rollout, Device.cpu) | keys.variables(),
    )
    reader = ObjectReader(DEADLINE_S)
    encoder = Encoder(load_tokenizer(str(model)))

    def encode(turns: tuple[Message, ...]) -> Prompt:
        return Prompt(turns[-1].content, encoder.messages(turns), encoder.encode_prompt(turns))

    async def ask(requests: Sequence[GenerationRequest]) -> list[RolloutGroup]:
        return [await reader.rollout_group(handle) for handle in await worker.generate(requests)]

    try:
        await worker.start(DEADLINE_S)
        answers = ServedAnswers(model.name, ask, encode, MAX_NEW_TOKENS, seed)
        picks = await simulate(picking(seed), answers)
    finally:
        worker.kill()
    log = stage / "feedback.jsonl"
    picks.write(log)
    return log


def picking(seed: int) -> Simulation:
    """Each of NUM_QUESTIONS asked once, the people taking turns."""
    return Simulation(
        conversations=NUM_QUESTIONS,
        users=(PEOPLE,),
        personas=(Persona("visitor"),),
        questions=tuple(demo_questions()[:NUM_QUESTIONS]),
        seed=seed,
    )


def _became(result: BuildResult) -> str:
    pairs = {file.split: file.rows for file in result.produced if file.kind == "pairs"}
    kept = f"{pairs['train']} pairs to learn from, {pairs['eval']} held out by person"
    return f"{result.rows_in} preferences became {kept}; {result.events_dropped} say nothing"


def demo_questions() -> list[str]:
    """The training questions, in file order."""
    rows = read_rows(str(files("raylign.data") / "demo" / "train.jsonl"))
    return [str(row.columns["prompt"]) for row in rows if isinstance(row, RawRow)]


def _part(console: Console, started: float, number: str, what: str) -> None:
    console.print(
        f"[{duration(time.monotonic() - started)}] part {number}: {what}", markup=False, highlight=False, soft_wrap=True
    )
