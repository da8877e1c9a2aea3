"""Preferences with a rule behind them, some of them flipped: what a trace must find out."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from raylign.conf.schema import OptimConfig, Precision
from raylign.data.preferences import PairExample, PairSet
from raylign.data.quarantine import LoadReport
from raylign.data.tokenize import EncodedAnswer
from raylign.data.types import RankShard, TokenBatch
from raylign.evals.replay import ReplaySettings, RowEngine, replay, row_window, sketch_of
from raylign.evals.trace_index import TraceIndex
from raylign.trainer.algorithms.base import OfflineAlgorithm
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.scalar_head import ScalarModel
from raylign.trainer.workers.offline_model import objective_of
from torch import Tensor

PER_STEP = 16
PRECISION = Precision.float32
_TRAINED, _HELD_OUT = 96, 32
_FLIPPED = 0.2


@dataclass(frozen=True)
class Planted:
    """`rows[i]` is the wrong way round where `flipped[i]`; row `twin[1]` repeats row `twin[0]` word for word."""

    rows: PairSet
    held_out: PairSet
    flipped: tuple[bool, ...]
    twin: tuple[int, int]


def planted(seed: int) -> Planted:
    """Good answers are mostly of one set of tokens, bad ones mostly of another."""
    draw = random.Random(seed)

    def answer(good: bool) -> tuple[int, ...]:
        return tuple(
            draw.randrange(3, 23) if draw.random() < (0.8 if good else 0.2) else draw.randrange(23, 43)
            for _ in range(12)
        )

    def pair(flip: bool) -> PairExample:
        prompt = tuple(draw.randrange(3, 500) for _ in range(5))
        sides = [EncodedAnswer((*prompt, *answer(good)), len(prompt)) for good in (not flip, flip)]
        return PairExample(sides[0], sides[1], margin=0.0, weight=1.0)

    flipped = [draw.random() < _FLIPPED for _ in range(_TRAINED)]
    pairs = [pair(flip) for flip in flipped]
    pairs[40], flipped[40] = pairs[7], flipped[7]
    held_out = [pair(False) for _ in range(_HELD_OUT)]
    return Planted(_set(pairs), _set(held_out), tuple(flipped), (7, 40))


def with_reference(rows: PairSet, model: CausalLM) -> PairSet:
    """The model's own log-probs as the reference's."""
    sequences = rows.sequences()
    batch = TokenBatch.from_sequences([ids for ids, _ in sequences], [mask for _, mask in sequences])
    learner = Learner(TorchEngine(model, OptimConfig(), total_steps=0))
    return rows.with_reference(learner.sequence_logprobs([batch])[0])


def traced(
    model: CausalLM | ScalarModel,
    algorithm: OfflineAlgorithm,
    rows: PairSet,
    held_out: PairSet,
    *,
    steps: int,
    lr: float = 1e-4,
    size: int = 16384,
) -> tuple[TraceIndex, Tensor]:
    """The index of a short run, and the sketch of the held-out loss's gradient at its end."""
    scalar = isinstance(model, ScalarModel)
    settings = ReplaySettings(steps, PER_STEP, 2048, seed=3, shuffle=True, scalar=scalar)
    engine = RowEngine(
        TorchEngine(model, OptimConfig(lr=lr), total_steps=steps),
        sketch_of(model, num_draws=steps * PER_STEP, largest=size),
    )
    objective = objective_of(algorithm)
    index = replay(engine, objective, rows, settings, {}, key="test", tell=lambda done, total: None)
    engine.keeps_weights, engine.passes = True, []
    window = row_window(held_out.batch(range(len(held_out))), len(held_out), settings)
    Learner(engine).update(RankShard((window,)), objective)
    return index, torch.stack([one.sketch for one in engine.passes]).sum(0)


def _set(pairs: list[PairExample]) -> PairSet:
    return PairSet(tuple(pairs), "planted", LoadReport("planted", len(pairs), len(pairs), 0, 0, 0))
