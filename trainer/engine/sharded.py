"""A frozen model whose ranks hold parts of it: ZeRO-3 without an optimizer, for models larger than one card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from raylign.conf.schema import Device, LearnerConfig, Precision
from raylign.trainer.engine.base import StepResult
from raylign.trainer.engine.deepspeed_start import prepare_deepspeed
from raylign.trainer.engine.partition import partition
from raylign.trainer.engine.rendezvous import Rendezvous, join
from raylign.trainer.engine.zero_config import deepspeed_config
from raylign.trainer.models.loading import torch_dtype
from torch import Tensor, nn


class ShardedEngine:
    """One rank of a model that is only asked. Its forward gathers weights, so all ranks call it together."""

    def __init__(self, module: nn.Module, precision: Precision, rendezvous: Rendezvous, *, device: Device) -> None:
        join(rendezvous, device)
        import deepspeed

        prepare_deepspeed()
        settings = deepspeed_config(LearnerConfig(precision=precision, zero_stage=3), device)
        module.requires_grad_(False).eval()
        partition(module, settings, torch_dtype(precision))
        self._rendezvous = rendezvous
        self._deepspeed, *_ = deepspeed.initialize(model=module, config=settings, dist_init_required=False)

    @property
    def module(self) -> nn.Module:
        """The model to call, on all ranks together."""
        return self._deepspeed.module

    @property
    def rank(self) -> int:
        """This process in the group."""
        return self._rendezvous.rank

    @property
    def world_size(self) -> int:
        """Processes in the group."""
        return self._rendezvous.world_size

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self._deepspeed.device)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks. Collective."""
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        self._deepspeed.destroy()
        dist.destroy_process_group()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Raises TypeError, as everything below: the model is frozen."""
        raise TypeError("a sharded frozen model is not trained")

    def step(self) -> StepResult:
        """Raises TypeError."""
        raise TypeError("a sharded frozen model is not trained")

    def gathered_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Raises TypeError."""
        raise TypeError("a sharded frozen model is not read out")

    def save_state(self, folder: Path) -> None:
        """Raises TypeError."""
        raise TypeError("a sharded frozen model has no state to save")

    def load_state(self, folder: Path) -> None:
        """Raises TypeError."""
        raise TypeError("a sharded frozen model has no state to load")
