"""A reward model or DPO on a file of preference pairs, in this process, with the parts a run has: rows, feed, learner.

What the feedback benchmarks share; no command of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One reward model."""

    model: str
    rows: str  # JSONL with prompt, chosen, rejected
    precision: str = "bfloat16"
    lr: float = 3e-5
    epochs: int = 1
    pairs_per_update: int = 8
    micro_batch_tokens: int = 1024
    max_length: int = 512
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """What a trained reward model says, and what it cost."""

    scores: tuple[float, ...]  # of the sequences asked about, in order
    pairs: int
    tokens: int
    seconds: float


def train_reward_model(training: Training, asked: Sequence[tuple[str, str]]) -> Scored:
    """Train, then score `asked`, each a question and an answer."""
    from raylign.cluster.pages import KeptPages
    from raylign.cluster.rank import MeetingPoint, RankInfo
    from raylign.conf.schema import DataConfig, LearnerConfig, OptimConfig, Precision, Schedule
    from raylign.data.encoder import Encoder
    from raylign.data.row_feed import FeedSettings, RowFeed
    from raylign.data.row_kinds import load_rows
    from raylign.data.tokenize import load_tokenizer
    from raylign.data.types import RowKind
    from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
    from raylign.trainer.engine.rendezvous import listen
    from raylign.trainer.workers.offline_model import objective_of
    from raylign.trainer.workers.specs import ScalarSpec

    tokenizer = load_tokenizer(training.model)
    rows = load_rows(RowKind.PAIRS, training.rows, DataConfig(max_length=training.max_length), tokenizer)
    steps = -(-len(rows) * training.epochs // training.pairs_per_update)
    optim = OptimConfig(lr=training.lr, warmup_steps=max(2, steps // 20), schedule=Schedule.linear)
    config = LearnerConfig(
        model=training.model,
        precision=Precision(training.precision),
        micro_batch_tokens=training.micro_batch_tokens,
        optim=optim,
    )
    spec = ScalarSpec(training.model, config, Device.cpu, steps, 3600.0, new_head_seed=training.seed)
    learner = spec.build(RankInfo("policy", 0, 1), MeetingPoint("127.0.0.1", listen("127.0.0.1")))
    settings = FeedSettings(1, training.pairs_per_update, training.micro_batch_tokens, training.seed, True)
    feed = RowFeed(rows, {}, settings, {})
    objective = objective_of(RewardModelling(RMConfig(centering_coef=0.01)))
    started, pages = time.monotonic(), KeptPages()
    for step in range(steps):
        found = learner.update(feed.next_update()[0], objective).metrics
        pages.after_step()
        if step % 10 == 0:
            told = f"step {step}/{steps} loss {found['loss']:.3f} accuracy {found['accuracy']:.2f}"
            print(f"{told} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    encoder = Encoder(tokenizer)
    encoded = [encoder.encode_answer(question, answer) for question, answer in asked]
    scores = _scores(learner, [side.token_ids for side in encoded], 4 * training.micro_batch_tokens)
    return Scored(tuple(scores), len(rows), int(feed.state()["num_tokens"]), seconds)


def _scores(learner: object, sequences: Sequence[Sequence[int]], most_tokens: int) -> list[float]:
    from raylign.data.types import TokenBatch

    batches, start = [], 0
    while start < len(sequences):
        end = start + 1
        while end < len(sequences) and sum(len(s) for s in sequences[start : end + 1]) <= most_tokens:
            end += 1
        part = sequences[start:end]
        batches.append(TokenBatch.from_sequences(part, [[False] * (len(s) - 1) + [True] for s in part]))
        start = end
    found = learner.scores(batches)  # type: ignore[attr-defined]
    return [float(score) for batch in found for score in batch]


def in_process(work: Callable[[T, R], Scored], first: T, second: R, *, threads: int) -> Scored:
    """`work(first, second)` in a child with a learner's environment: each model in memory of its own."""
    keys = RoleEnv(Device.cpu, threads, keeps_pages=True).variables()
    before = {key: os.environ.get(key) for key in keys}
    os.environ.update(keys)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, first, second).result()
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the ends that hold 95 % of bootstrap means."""

    value: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """In per cent."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def by_group(values: Sequence[float], groups: Sequence[object], *, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values`; whole groups (questions) are drawn anew, since what is in one is alike."""
    names, index = np.unique(np.asarray([str(g) for g in groups]), return_inverse=True)
    sums, counts = (np.bincount(index, weights=w, minlength=len(names)) for w in (np.asarray(values, float), None))
    drawn = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return Interval(float(np.mean(values)), *(float(x) for x in np.quantile(means, (0.025, 0.975))))


def repository_on_path() -> None:
    """Children started from a script in benchmarks/ find the packages as it does."""
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
