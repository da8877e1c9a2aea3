"""Trains a finished offline run's steps once more, row by row, and notes what each row did to the model.

The steps are the run's own: same rows, same loss, same optimizer. Each row is a micro-batch of its own, so that the
gradient that the engine adds for it can be looked at before. What is kept of a row is in evals/trace_index.py.
One process, float32, plain AdamW: the learner's figures agree with the run's to rounding, and `loss_gap` says how well.

Per-row gradients at the weights of the row's own step, and their inner products with a target's gradient: TracIn
(Pruthi et al. 2020, arXiv:2002.08484); on a random projection: LESS (Xia et al. 2024, arXiv:2402.04333).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from raylign.data.batching import plan_forward, shard
from raylign.data.row_kinds import TrainRows
from raylign.data.sampler import EpochSampler
from raylign.data.types import PairBatch, RankShard, TokenBatch, TokenOutputs, UpdateWindow
from raylign.evals.sketch import GradientSketch
from raylign.evals.trace_index import IndexHeader, TraceIndex
from raylign.trainer.engine.base import WRAPPER_PREFIX, StepResult
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner, Objective
from torch import Tensor, nn

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_INDEX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How the run fed its learner."""

    num_steps: int
    rows_per_update: int
    micro_batch_tokens: int
    seed: int
    shuffle: bool
    scalar: bool


@dataclass(slots=True)
class RowPass:
    """One row's forward and backward pass."""

    loss: float
    sketch: Tensor  # [size] float32
    layer_squares: Tensor  # [layers] float64
    outputs: Tensor  # log-probs [N] or state scalars [N], of the row's tokens
    push: Tensor  # [N]: derivative of the loss with respect to them


class RowEngine:
    """A TorchEngine that looks at every micro-batch's gradient. An Engine of one rank."""

    def __init__(self, engine: TorchEngine, sketch: GradientSketch) -> None:
        self._engine, self.sketch = engine, sketch
        self.passes: list[RowPass] = []
        self.moved: Tensor | None = None  # sketch of the newest step's change of the weights
        self.keeps_weights = False  # the step changes nothing
        self._sums: dict[str, Tensor] = {}
        self._seen: Tensor | None = None
        self._push: Tensor | None = None
        self._trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
        self._layer_of = {name: layer_of(name) for name in self._trained}
        self.layers = tuple(dict.fromkeys(self._layer_of.values()))
        engine.module.register_forward_hook(self._notice)

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self._engine.module

    @property
    def rank(self) -> int:
        """Always 0."""
        return 0

    @property
    def world_size(self) -> int:
        """Always 1."""
        return 1

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self._engine.device

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Note this row's gradient and add it."""
        self._push = None
        seen = self._seen
        assert seen is not None
        if seen.requires_grad:
            seen.register_hook(self._keep_push)
        if loss.requires_grad:
            loss.backward()
        gradients = {name: p.grad for name, p in self._trained.items() if p.grad is not None}
        squares = dict.fromkeys(self.layers, 0.0)
        for name, gradient in gradients.items():
            squares[self._layer_of[name]] += float(torch.linalg.vector_norm(gradient).double() ** 2)
        push = torch.zeros_like(seen) if self._push is None else self._push
        self.passes.append(
            RowPass(
                float(loss.detach()),
                self.sketch.of(gradients.items()),
                torch.tensor(list(squares.values()), dtype=torch.float64),
                seen.detach().float().cpu(),
                push.detach().float().cpu(),
            )
        )
        self._take(gradients, last=last)

    def step(self) -> StepResult:
        """Clip and update; `moved` is what that changed."""
        if self.keeps_weights:
            self._clear()
            return StepResult(0.0, 0.0, applied=True)
        held = {name: p.detach().clone() for name, p in self._trained.items()}
        result = self._engine.step()
        self.moved = self.sketch.of((name, p.detach() - held[name]) for name, p in self._trained.items())
        return result

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def gathered_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """As the plain engine's."""
        return self._engine.gathered_parameters()

    def save_state(self, folder: Path) -> None:
        """A replay is never saved."""
        raise NotImplementedError

    def load_state(self, folder: Path) -> None:
        """Nor continued."""
        raise NotImplementedError

    def barrier(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to leave."""

    def _take(self, gradients: Mapping[str, Tensor], *, last: bool) -> None:
        for name, gradient in gradients.items():
            if name in self._sums:
                self._sums[name] += gradient
            else:
                self._sums[name] = gradient
            self._trained[name].grad = None
        if last:
            for name, total in self._sums.items():
                self._trained[name].grad = total
            self._sums = {}

    def _clear(self) -> None:
        for parameter in self._trained.values():
            parameter.grad = None

    def _notice(self, module: nn.Module, given: object, output: TokenOutputs | Tensor) -> None:
        self._seen = output if isinstance(output, Tensor) else output.logprobs

    def _keep_push(self, gradient: Tensor) -> None:
        self._push = gradient


def layer_of(name: str) -> str:
    """`layer 3` of a parameter's name; the part before the layers, or after them, by its own name."""
    found = _LAYER.search(name)
    if found:
        return f"layer {found[1]}"
    parts = name.removeprefix(WRAPPER_PREFIX).removesuffix(".weight").removesuffix(".bias").split(".")
    return parts[-1]


def sketch_of(module: nn.Module, *, num_draws: int, largest: int = 16384, seed: int = 0) -> GradientSketch:
    """A projection of what `module` trains, smaller where the index of `num_draws` would pass a gigabyte."""
    size = largest
    while size > 1024 and size * 2 * num_draws > _INDEX_BYTES:
        size //= 2
    trained = {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
    return GradientSketch(trained, size=size, seed=seed)


@dataclass(slots=True)
class _Draws:
    """The index as it grows."""

    step: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    layer_norm: list[Tensor] = field(default_factory=list)
    sketch: list[Tensor] = field(default_factory=list)
    along: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    side: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)
    push: list[Tensor] = field(default_factory=list)


def replay(
    engine: RowEngine,
    objective: Objective[Any],
    rows: TrainRows,
    settings: ReplaySettings,
    losses: Mapping[int, float],
    *,
    key: str,
    tell: Callable[[int, int], None],
) -> TraceIndex:
    """Train the run's steps again. `losses`: the run's own, by step; `tell(steps done, of how many)`."""
    began = time.monotonic()
    learner, found = Learner(engine), _Draws()
    movement = torch.zeros(engine.sketch.size)
    sampler = EpochSampler(len(rows), seed=settings.seed, shuffle=settings.shuffle, data_hash=rows.digest)
    gap, gap_step = 0.0, 0
    for step in range(1, settings.num_steps + 1):
        drawn = [index for _, index in sampler.next_batch(settings.rows_per_update)]
        loss = _step(learner, engine, objective, rows.batch(drawn), settings, (step, drawn), found)
        assert engine.moved is not None
        movement += engine.moved
        if step in losses and (difference := abs(loss - losses[step]) / max(abs(losses[step]), 1e-12)) > gap:
            gap, gap_step = difference, step
        tell(step, settings.num_steps)
    header = IndexHeader(
        key=key,
        steps=settings.num_steps,
        layers=engine.layers,
        sketch_size=engine.sketch.size,
        sketch_seed=0,
        seconds=round(time.monotonic() - began, 1),
        loss_gap=gap,
        loss_gap_step=gap_step,
        scalar=settings.scalar,
    )
    return _index(header, found, movement)


def _step(
    learner: Learner,
    engine: RowEngine,
    objective: Objective[Any],
    batch: Any,
    settings: ReplaySettings,
    place: tuple[int, Sequence[int]],
    found: _Draws,
) -> float:
    """One optimizer step; its loss."""
    step, drawn = place
    engine.passes = []
    window = row_window(batch, len(drawn), settings)
    result = learner.update(RankShard((window,)), objective)
    after = outputs_of(learner, batch, settings)
    assert engine.moved is not None
    for i, (row, passed) in enumerate(zip(drawn, engine.passes, strict=True)):
        one = batch.select([i])
        units, side = units_of(one, scalar=settings.scalar)
        squares = passed.layer_squares
        norm = float(squares.sum().sqrt())
        found.step.append(step)
        found.row.append(row)
        found.lr.append(result.metrics["lr"])
        found.loss.append(passed.loss * len(drawn))
        found.norm.append(norm * len(drawn))
        found.layer_norm.append(squares.sqrt().float() * len(drawn))
        found.sketch.append((passed.sketch / norm if norm > 0 else passed.sketch).half())
        found.along.append(float(passed.sketch.double() @ engine.moved.double()))
        found.counts.append(len(side))
        found.side.append(side)
        found.before.append(passed.outputs[units])
        found.after.append(after[i][units])
        found.push.append(passed.push[units])
    return result.metrics["loss"]


def row_window(batch: Any, count: int, settings: ReplaySettings) -> UpdateWindow[Any]:
    """One optimizer step of `count` rows, each a micro-batch of its own."""
    (whole,) = shard(
        batch,
        num_ranks=1,
        units_per_update=count,
        micro_batch_tokens=settings.micro_batch_tokens,
        seed=settings.seed,
    )
    return UpdateWindow(tuple(batch.select([i]) for i in range(count)), whole.windows[0].denominators)


def outputs_of(learner: Learner, batch: Any, settings: ReplaySettings) -> list[Tensor]:
    """Log-probs, or state scalars, `[N]` of every row's tokens under the present weights."""
    (plan,) = plan_forward(batch.units(), num_ranks=1, micro_batch_tokens=settings.micro_batch_tokens)
    parts = [batch.select(items) for items in plan]
    if settings.scalar:
        with torch.no_grad():
            seen = [learner.engine.module(part.tokens).cpu() for part in parts]
    else:
        seen = learner.logprobs([part.tokens for part in parts], temperature=1.0)
    found: dict[int, Tensor] = {}
    for items, part, values in zip(plan, parts, seen, strict=True):
        each = part.tokens.num_sequences // len(items)
        for i, item in enumerate(items):
            found[item] = values[part.tokens.token_index(range(i * each, (i + 1) * each))].float()
    return [found[i] for i in range(len(found))]


def units_of(row: Any, *, scalar: bool) -> tuple[Tensor, Tensor]:
    """Where a row's units are among its tokens, and which answer each belongs to. ([U] int64, [U] uint8)"""
    tokens: TokenBatch = row.tokens
    if scalar:
        return tokens.cu_seqlens[1:].long() - 1, torch.arange(tokens.num_sequences, dtype=torch.uint8)
    mask = row.answers if isinstance(row, PairBatch) and row.answers is not None else tokens.response_mask
    side = torch.repeat_interleave(torch.arange(tokens.num_sequences, dtype=torch.uint8), tokens.lengths.long())
    return mask.nonzero()[:, 0], side[mask]


def _index(header: IndexHeader, found: _Draws, movement: Tensor) -> TraceIndex:
    return TraceIndex(
        header=header,
        step=torch.tensor(found.step),
        row=torch.tensor(found.row),
        lr=torch.tensor(found.lr, dtype=torch.float64),
        loss=torch.tensor(found.loss, dtype=torch.float64),
        norm=torch.tensor(found.norm, dtype=torch.float64),
        layer_norm=torch.stack(found.layer_norm),
        sketch=torch.stack(found.sketch),
        along=torch.tensor(found.along, dtype=torch.float64),
        first_unit=torch.tensor([0, *found.counts]).cumsum(0),
        side=torch.cat(found.side),
        before=torch.cat(found.before),
        after=torch.cat(found.after),
        push=torch.cat(found.push),
        movement=movement,
    )
