"""What a training engine is. ZeRO (engine/zero.py) and plain AdamW (engine/torch_engine.py) are the two.

A loss handed to an engine is a *sum* already divided by global denominators: gradients add over micro-batches and
over ranks, and nothing is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from raylign.conf.schema import OptimConfig, Schedule
from raylign.trainer.verified_folder import FileDigest
from torch import Tensor, nn

WRAPPER_PREFIX = "hf."
"""Both model wrappers hold the transformers model under this name; without it parameter names are Hugging Face's."""


class EngineStateError(RuntimeError):
    """A saved engine state does not fit this engine; the message says what differs."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    grad_norm: float  # global L2 norm before clipping; inf or nan when the step was skipped
    lr: float  # learning rate of this step
    applied: bool  # False: the gradient was not finite, nothing changed


class Engine(Protocol):
    """One rank of a data-parallel learner. Methods marked collective must be called by all ranks together."""

    @property
    def module(self) -> nn.Module:
        """The model to call. Its forward is collective under ZeRO-3."""
        ...

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add this micro-batch's gradient; `last` closes the accumulation, `step` must follow. Collective."""
        ...

    def step(self) -> StepResult:
        """Clip, update, clear gradients. Collective."""
        ...

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, on every rank. Collective; the input is left alone."""
        ...

    def gathered_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters by Hugging Face name, tied ones once, in bounded memory. Collective.

        As they are trained: adapters stand beside the weight they adapt (engine/buckets.py has the two merged).
        A tensor may be the model's own memory: it is valid until that trains on. Every rank must run the iterator to
        its end.
        """
        ...

    def save_state(self, folder: Path) -> None:
        """Write this rank's master weights and optimizer state into `folder`. Collective."""
        ...

    def load_state(self, folder: Path) -> None:
        """Continue exactly where `save_state` left off. Collective. Raises EngineStateError when it cannot."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks, at most the process group's timeout. Collective."""
        ...

    def close(self) -> None:
        """Leave the process group; the engine is unusable afterwards."""
        ...


class BackgroundSaving(Protocol):
    """An engine in training that is saved beside it."""

    def begin_save(self, folder: Path) -> None:
        """As `save_state`, beside what comes: forward and backward passes go on, the next step waits. Collective."""
        ...

    def saved(self) -> FileDigest | None:
        """This rank's file, read back from the disk; None while it is written. Raises what the disk refused."""
        ...


class MovableState(Protocol):
    """An engine in training that may share its device."""

    def offload_state(self) -> None:
        """Masters, moments and kept gradients to the host, for others that share the device. Collective.

        Forward passes, `gathered_parameters` and `save_state` work on; `backward` and `load_state` raise
        EngineStateError.
        """
        ...

    def reload_state(self) -> None:
        """Back to the device, bit for bit. Collective."""
        ...


def refuse_offloaded(away: bool) -> None:
    """Raises EngineStateError: training on memory that is not there would end the process."""
    if away:
        raise EngineStateError("the optimizer's state is on the host; reload_state() must come first")


def lr_at(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Learning rate of the optimizer step after `step` applied ones: linear warm-up, then the schedule.

    linear and cosine reach 0 one step after the last of `total_steps`; beyond that they stay there.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule is Schedule.constant:
        return optim.lr
    remaining = max(total_steps - optim.warmup_steps, 1)
    progress = min((step - optim.warmup_steps) / remaining, 1.0)
    if optim.schedule is Schedule.linear:
        return optim.lr * (1.0 - progress)
    return optim.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """All of them, or with adapters those and a scalar head."""
    return [p for p in module.parameters() if p.requires_grad]


def trained_by_name(module: nn.Module) -> dict[str, nn.Parameter]:
    """The same, by Hugging Face name, in the same order."""
    named = module.named_parameters()
    return {name.removeprefix(WRAPPER_PREFIX): p for name, p in named if p.requires_grad}


def adamw(module: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over two groups: weight decay acts on matrices, not on norms and biases.

    The parameters must still have their shapes: one that ZeRO-3 has partitioned looks like a bias.
    """
    trained = trained_parameters(module)
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    # lr 0 until the first step sets it: DeepSpeed runs some optimizers once at start, on zero gradients.
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=True)


def moments(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """AdamW's running means, of every parameter that has had a step."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor) and value.ndim)
