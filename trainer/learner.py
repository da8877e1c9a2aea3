"""One learner for policy, critic and reward model: forward passes over packed batches, and updates. No Ray, no config.

All ranks of a learner call the same method at the same time. Under ZeRO-3 every forward and backward is a collective,
so the number of passes is made equal first; a rank with fewer batches runs a two-token filler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from raylign.data.types import B, Denominators, RankShard, TokenBatch, UpdateWindow, ValueEstimates
from raylign.trainer.algorithms.base import LossOutput, MetricSum
from raylign.trainer.engine.base import Engine, StepResult
from raylign.trainer.functional.segments import sequence_sum
from raylign.trainer.hardware import hardware_figures
from raylign.trainer.loops.interfaces import UpdateResult
from raylign.trainer.models.lora import adapters_off
from raylign.trainer.models.scalar_head import last_states, values_from_states
from raylign.trainer.models.sequence_split import SequenceSplit
from torch import Tensor, nn

Objective = Callable[[nn.Module, B, Denominators], LossOutput]
"""(model, micro-batch, global denominators of the step) -> a loss to be summed, and metrics to be averaged."""


@runtime_checkable
class MeasuredObjective(Protocol):
    """An objective that needs a figure of the whole step before its first gradient."""

    def measure(self, model: nn.Module, batch: Any, denominators: Denominators) -> Tensor:
        """A micro-batch's share `[]`; shares of all ranks and micro-batches add up."""
        ...

    def given(self, figure: Tensor) -> Objective[Any]:
        """The objective with the figure `[]` known."""
        ...


T = TypeVar("T")


class RanksDisagreeError(RuntimeError):
    """The ranks of a learner were given different numbers of steps or micro-batches."""


class Learner:
    """Runs a model through an engine."""

    def __init__(self, engine: Engine, split: SequenceSplit | None = None) -> None:
        """`split`: of the model, whose ranks see the same batches; the first one's figures count."""
        self._engine = engine
        self._counts = split is None or split.rank == 0

    @property
    def engine(self) -> Engine:
        """For saving, publishing and barriers."""
        return self._engine

    def logprobs(
        self, batches: Sequence[TokenBatch], *, temperature: float, without_adapters: bool = False
    ) -> list[Tensor]:
        """Log-probs `[N]` of each batch's response tokens, float32 on the CPU. Collective.

        `without_adapters`: of the frozen weights alone, which are those the model was loaded with.
        """
        with adapters_off(self._engine.module) if without_adapters else nullcontext():
            return self._forward(batches, lambda b: self._engine.module(b, temperature=temperature).logprobs.cpu())

    def sequence_logprobs(self, batches: Sequence[TokenBatch]) -> list[Tensor]:
        """Log-prob `[S]` of each sequence's response tokens together, at temperature 1, float64 on the CPU.

        Collective.
        """
        per_token = self.logprobs(batches, temperature=1.0)
        return [sequence_sum(p.double(), b) for p, b in zip(per_token, batches, strict=True)]

    def values(self, batches: Sequence[TokenBatch]) -> list[ValueEstimates]:
        """A scalar model's values of each batch, on the CPU. Collective."""

        def estimate(batch: TokenBatch) -> ValueEstimates:
            return to_device(values_from_states(self._engine.module(batch), batch), torch.device("cpu"))

        return self._forward(batches, estimate)

    def scores(self, batches: Sequence[TokenBatch]) -> list[Tensor]:
        """A scalar model's score `[S]` of each batch's sequences: the state after the last token. Collective."""
        return self._forward(batches, lambda b: last_states(self._engine.module(b), b).cpu())

    def update(self, shard: RankShard[B], objective: Objective[B]) -> UpdateResult:
        """One optimizer step a window. Collective; raises RanksDisagreeError before any training.

        Metrics are means over everything the objective counted, on all ranks and windows; `loss` is the mean over
        windows of the whole loss, `grad_norm` the mean over applied steps, `lr` that of the last step, `seconds` of
        this rank, `tokens` trained on by all ranks.
        """
        self._check_ranks_agree(shard)
        started = time.perf_counter()
        tally = _Tally()
        steps = [self._window(window, objective, tally) for window in shard.windows]
        metrics = tally.reduce(self._engine, num_windows=len(steps), counts=self._counts)
        applied = [step for step in steps if step.applied]
        metrics["grad_norm"] = sum(s.grad_norm for s in applied) / len(applied) if applied else float("nan")
        metrics["lr"] = steps[-1].lr if steps else 0.0
        metrics["seconds"] = time.perf_counter() - started
        metrics |= hardware_figures(self._engine, tokens=metrics.get("tokens", 0.0), seconds=metrics["seconds"])
        return UpdateResult(metrics, steps_applied=len(applied), steps_skipped=len(steps) - len(applied))

    @torch.no_grad()
    def evaluate(self, shard: RankShard[B], objective: Objective[B]) -> dict[str, float]:
        """The objective's metrics without training, reduced as by `update`. Collective; raises RanksDisagreeError."""
        self._check_ranks_agree(shard)
        module, tally = self._engine.module.eval(), _Tally()
        for window in shard.windows:
            ready = self._measured(window, objective)
            for micro_batch in window.micro_batches:
                batch = to_device(micro_batch, self._engine.device)
                tally.add(ready(module, batch, window.denominators), batch.tokens)
        return tally.reduce(self._engine, num_windows=len(shard.windows), counts=self._counts)

    def _window(self, window: UpdateWindow[B], objective: Objective[B], tally: _Tally) -> StepResult:
        objective = self._measured(window, objective)
        module = self._engine.module.train()
        for i, micro_batch in enumerate(window.micro_batches):
            batch = to_device(micro_batch, self._engine.device)
            output = objective(module, batch, window.denominators)
            self._engine.backward(output.loss, last=i == len(window.micro_batches) - 1)
            tally.add(output, batch.tokens)
        return self._engine.step()

    @torch.no_grad()
    def _measured(self, window: UpdateWindow[B], objective: Objective[B] | MeasuredObjective) -> Objective[B]:
        """The objective, with its figure of the whole window when it needs one. Collective."""
        if not isinstance(objective, MeasuredObjective):
            return objective
        module, total = self._engine.module.eval(), torch.zeros((), dtype=torch.float64)
        for micro_batch in window.micro_batches:
            batch = to_device(micro_batch, self._engine.device)
            total += objective.measure(module, batch, window.denominators).double().cpu()
        return objective.given(self._engine.all_reduce_sum(total if self._counts else torch.zeros_like(total)))

    @torch.no_grad()
    def _forward(self, batches: Sequence[TokenBatch], run: Callable[[TokenBatch], T]) -> list[T]:
        self._engine.module.eval()
        counts = torch.zeros(self._engine.world_size)
        counts[self._engine.rank] = len(batches)
        rounds = int(self._engine.all_reduce_sum(counts).max())
        results = [run(to_device(batch, self._engine.device)) for batch in batches]
        filler = to_device(TokenBatch.from_sequences([[0, 0]], [[False, False]]), self._engine.device)
        for _ in range(rounds - len(batches)):
            run(filler)
        return results

    def _check_ranks_agree(self, shard: RankShard[B]) -> None:
        counts = [len(shard.windows), *(len(w.micro_batches) for w in shard.windows)]
        shape = hash(tuple(counts)) % 1_000_003  # small enough for an exact sum of squares
        total, squares = self._engine.all_reduce_sum(torch.tensor([shape, shape**2], dtype=torch.float64)).tolist()
        if self._engine.world_size * squares != total**2:
            raise RanksDisagreeError(
                f"rank {self._engine.rank} was given {counts[0]} steps of {counts[1:]} micro-batches, another rank a "
                "different plan; every rank needs the same (data/batching.py fills up with fillers)"
            )


class _Tally:
    """Metric sums of one update. They stay on the device until its end: to read one is to wait for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, list[tuple[Tensor, Tensor]]] = {}  # totals and counts, of each micro-batch
        self._maxima: dict[str, list[Tensor]] = {}

    def add(self, output: LossOutput, tokens: TokenBatch) -> None:
        one = torch.ones(())
        own = {
            "loss": MetricSum(output.loss.detach(), one),
            "tokens": MetricSum(torch.tensor(float(tokens.num_tokens)), one),
        }
        for name, metric in {**output.metrics, **own}.items():
            self._sums.setdefault(name, []).append((metric.total.detach().double(), metric.count.detach().double()))
        for name, value in output.maxima.items():
            self._maxima.setdefault(name, []).append(value.detach().double())

    def reduce(self, engine: Engine, *, num_windows: int, counts: bool = True) -> dict[str, float]:
        """Sums over ranks that count first, then one division a metric. Every rank has the same names."""
        names = sorted(self._sums)
        if not names:
            return {}
        totals = on_host([total for name in names for total, _ in self._sums[name]])
        numbers = on_host([count for name in names for _, count in self._sums[name]])
        sizes = [len(self._sums[name]) for name in names]
        own = [torch.stack([t.sum(), c.sum()]) for t, c in zip(totals.split(sizes), numbers.split(sizes), strict=True)]
        total = engine.all_reduce_sum(torch.stack(own) if counts else torch.zeros(len(own), 2).double()).cpu()
        counted = (total[:, 1] > 0).tolist()  # nothing counted, nothing to say: no desirable answer in this step
        names, total = [name for name, any_ in zip(names, counted, strict=True) if any_], total[total[:, 1] > 0]
        metrics = dict(zip(names, (total[:, 0] / total[:, 1]).tolist(), strict=True))
        sums = dict(zip(names, total[:, 0].tolist(), strict=True))
        return {**metrics, **self._reduced_maxima(engine), "loss": sums["loss"] / num_windows, "tokens": sums["tokens"]}

    def _reduced_maxima(self, engine: Engine) -> dict[str, float]:
        """The largest of all ranks, by the one collective an engine has: each rank fills its own column of a sum."""
        names = sorted(self._maxima)
        if not names:
            return {}
        found = torch.zeros(len(names), engine.world_size, dtype=torch.float64)
        values = on_host([value for name in names for value in self._maxima[name]])
        sizes = [len(self._maxima[name]) for name in names]
        found[:, engine.rank] = torch.stack([one.max() for one in values.split(sizes)])
        return dict(zip(names, engine.all_reduce_sum(found).cpu().amax(1).tolist(), strict=True))


def on_host(scalars: Sequence[Tensor]) -> Tensor:
    """Tensors `[]` in float64, on any devices, as one float64 tensor on the CPU: one wait a device."""
    found = torch.empty(len(scalars), dtype=torch.float64)
    for device in {scalar.device for scalar in scalars}:
        places = [i for i, scalar in enumerate(scalars) if scalar.device == device]
        found[places] = torch.stack([scalars[i] for i in places]).cpu()
    return found


def to_device(value: T, device: torch.device) -> T:
    """A dataclass with every tensor, at any depth, on `device`; the same object when all are there already."""
    moved = dict(_moved(value, device))
    return replace(value, **moved) if moved else value  # type: ignore[type-var]


def _moved(value: object, device: torch.device) -> Iterator[tuple[str, object]]:
    for field in fields(value):  # type: ignore[arg-type]
        old = getattr(value, field.name)
        if isinstance(old, Tensor):
            new: object = old.to(device)
        elif is_dataclass(old):
            new = to_device(old, device)
        else:
            continue
        if new is not old:
            yield field.name, new
