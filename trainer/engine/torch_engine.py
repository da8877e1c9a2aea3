"""Plain AdamW in one process: the truth the tests hold ZeRO against, and enough to train a small model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from raylign.conf.schema import OptimConfig
from raylign.trainer.engine.base import (
    WRAPPER_PREFIX,
    StepResult,
    adamw,
    lr_at,
    moments,
    refuse_offloaded,
    trained_by_name,
    trained_parameters,
)
from raylign.trainer.engine.offload import OnHost
from raylign.trainer.engine.relayout import Cut, whole_cut
from raylign.trainer.engine.state_file import StateHeader, load_masters, state_writer
from raylign.trainer.models.lora import frozen_digest
from torch import Tensor, nn


class TorchEngine:
    """One rank, weights and optimizer in the model's own precision (use float32)."""

    def __init__(self, module: nn.Module, optim: OptimConfig, *, total_steps: int) -> None:
        self._module = module
        self._optim = optim
        self._total_steps = total_steps
        self._optimizer = adamw(module, optim)
        self._applied_steps = 0
        self._on_host = OnHost()

    @property
    def module(self) -> nn.Module:
        """The model to call."""
        return self._module

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
        """Where the parameters are."""
        return next(self._module.parameters()).device

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add this micro-batch's gradient."""
        refuse_offloaded(bool(self._on_host))
        loss.backward()

    def step(self) -> StepResult:
        """Clip by the global norm, update, clear gradients."""
        lr = lr_at(self._applied_steps, self._optim, self._total_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        grad_norm = clip_gradients(self._module, self._optim.max_grad_norm)
        applied = bool(grad_norm.isfinite())
        if applied:
            self._optimizer.step()
            self._applied_steps += 1
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(float(grad_norm), lr, applied)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself: there is one rank."""
        return tensor

    def gathered_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters by Hugging Face name, tied ones once."""
        for name, parameter in self._module.named_parameters():
            yield name.removeprefix(WRAPPER_PREFIX), parameter.detach()

    def save_state(self, folder: Path) -> None:
        """Write weights and moments of what is trained."""
        masters = trained_parameters(self._module)
        state_writer(folder, self._header(), self._cut(), masters, self._optimizer, self._on_host.read)()

    def load_state(self, folder: Path) -> None:
        """Continue from `save_state`."""
        refuse_offloaded(bool(self._on_host))
        masters = trained_parameters(self._module)
        self._applied_steps = load_masters(folder, self._header(), self._cut(), masters, self._optimizer)

    def offload_state(self) -> None:
        """The moments to the host; the masters are the working weights."""
        self._on_host.take(moments(self._optimizer), self.device)

    def reload_state(self) -> None:
        """Back."""
        self._on_host.give_back()

    def barrier(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to leave."""

    def _cut(self) -> Cut:
        return whole_cut(trained_by_name(self._module).items())

    def _header(self) -> StateHeader:
        precision = str(next(self._module.parameters()).dtype).removeprefix("torch.")
        kind = f"torch {precision}" if precision == "float32" else f"torch {precision}-masters"
        return StateHeader(kind, 0, 1, self._applied_steps, frozen_digest(self._module))


def clip_gradients(module: nn.Module, max_norm: float) -> Tensor:
    """Scale gradients to at most `max_norm` (0: leave them) and return their global norm before that."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        scale = (max_norm / (total + 1e-6)).clamp(max=1.0)  # DeepSpeed's epsilon, so that engines agree
        for gradient in gradients:
            gradient.mul_(scale)
    return total
