"""DeepSpeed ZeRO stages 0-3 behind the Engine Protocol. The only file that knows DeepSpeed.

What is different from DeepSpeed's defaults, and why:
- DeepSpeed averages gradients over ranks; our losses are sums over global denominators, so the loss is multiplied by
  the world size first.
- The accumulation boundary is ours (`last`): the number of micro-batches varies from step to step.
- A gradient that is not finite skips the step on all ranks, in float32 too.
- State is saved as plain tensors (engine/state_file.py): DeepSpeed's own loader unpickles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from raylign.conf.schema import Device, LearnerConfig, Offload
from raylign.trainer.engine.background import BackgroundWrite
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
from raylign.trainer.engine.deepspeed_start import prepare_deepspeed
from raylign.trainer.engine.offload import OnHost
from raylign.trainer.engine.partition import partition
from raylign.trainer.engine.relayout import Cut, Piece, whole_cut
from raylign.trainer.engine.rendezvous import Rendezvous, join
from raylign.trainer.engine.state_file import StateHeader, load_masters, state_writer
from raylign.trainer.engine.torch_engine import clip_gradients
from raylign.trainer.engine.zero_config import deepspeed_config
from raylign.trainer.models.loading import torch_dtype
from raylign.trainer.models.lora import frozen_digest
from raylign.trainer.verified_folder import FileDigest
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

GATHER_BYTES = 256 << 20
"""ZeRO-3: whole parameters held at once while they are read out."""


class ZeroEngine:
    """One rank of a DeepSpeed learner."""

    def __init__(
        self,
        module: nn.Module,
        config: LearnerConfig,
        rendezvous: Rendezvous,
        *,
        device: Device = Device.cpu,
        total_steps: int,
    ) -> None:
        join(rendezvous, device)
        self._config = config
        self._rendezvous = rendezvous
        self._total_steps = total_steps
        self._applied_steps = 0
        self._on_host = OnHost()
        self._write = BackgroundWrite(rendezvous.timeout_s)
        self._frozen = frozen_digest(module, torch_dtype(config.precision))  # now, while this rank has all of it
        self._shapes = {name: tuple(p.shape) for name, p in trained_by_name(module).items()}  # stage 3 empties them
        self._deepspeed = _initialize(module, config, device)
        self._optimizer: Any = self._deepspeed.optimizer  # DeepSpeed's wrapper; plain AdamW for stage 0 in float32
        self._adamw: torch.optim.Optimizer = self._deepspeed.basic_optimizer
        self._adamw.state.clear()  # some wrappers step once on zero gradients: it would shift bias correction

    @property
    def module(self) -> nn.Module:
        """The model to call; under ZeRO-3 its forward gathers weights, on all ranks together."""
        return self._deepspeed.module

    @property
    def rank(self) -> int:
        """This process in the learner's group."""
        return self._rendezvous.rank

    @property
    def world_size(self) -> int:
        """Processes in the learner's group."""
        return self._rendezvous.world_size

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self._deepspeed.device)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add this micro-batch's gradient; stages 2 and 3 also reduce it here. Collective."""
        from deepspeed.runtime.utils import register_output_backward_hooks

        refuse_offloaded(bool(self._on_host))
        engine = self._deepspeed
        engine.set_gradient_accumulation_boundary(last)
        if self._config.zero_stage > 0:
            engine.optimizer.clear_backward_seen_flag()
        # DeepSpeed hangs its backward prologue on the forward's output tensors, but looks for them in tuples and
        # dicts only, and our outputs are typed: hang it on the loss, which is before all of them.
        scaled = loss * self.world_size
        register_output_backward_hooks(scaled, preprocess_once_fn=engine._backward_prologue)
        engine.backward(scaled)

    def step(self) -> StepResult:
        """Clip, update, clear gradients; skipped on every rank when the gradient is not finite. Collective."""
        self._write.settle()
        lr = lr_at(self._applied_steps, self._config.optim, self._total_steps)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        plain = self._optimizer is self._adamw
        if plain:  # DeepSpeed clips but neither reports the norm nor checks it here
            grad_norm = float(clip_gradients(self.module, self._config.optim.max_grad_norm))
            if not torch.tensor(grad_norm).isfinite():
                self._deepspeed.zero_grad()
                return StepResult(grad_norm, lr, applied=False)
        self._deepspeed.step()
        if not plain:
            grad_norm = float(self._deepspeed.get_global_grad_norm())
        applied = bool(self._deepspeed.was_step_applied())
        self._applied_steps += applied
        return StepResult(grad_norm, lr, applied)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks. Collective."""
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total

    def gathered_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """As trained, by Hugging Face name, tied ones once. Collective; ZeRO-3 gathers a bucket at a time."""
        named = [(n.removeprefix(WRAPPER_PREFIX), p) for n, p in self.module.named_parameters()]
        if self._config.zero_stage < 3:
            yield from ((name, p.detach()) for name, p in named)
            return
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        for bucket in _gather_buckets(named, GATHER_BYTES):
            with GatheredParameters([p for _, p in bucket]):
                yield from ((name, p.detach().clone()) for name, p in bucket)  # partitioned again right after

    def save_state(self, folder: Path) -> None:
        """Write this rank's float32 masters and moments. Collective, also where a rank's disk refuses its file."""
        try:
            self.begin_save(folder)
            self._write.settle()
            self.saved()
        finally:
            self.barrier()

    def begin_save(self, folder: Path) -> None:
        """The same beside what comes; whatever changes the state waits for it."""
        self._write.begin(
            state_writer(folder, self._header(), self._cut(), self._masters(), self._adamw, self._on_host.read)
        )

    def saved(self) -> FileDigest | None:
        """This rank's file, read back; None while it is written. Raises what the disk refused."""
        return self._write.result()

    def load_state(self, folder: Path) -> None:
        """Restore masters and moments and rebuild the working weights from them. Collective."""
        refuse_offloaded(bool(self._on_host))
        self._write.settle()
        self._applied_steps = load_masters(folder, self._header(), self._cut(), self._masters(), self._adamw)
        self._refresh_working_weights()
        self.barrier()

    def offload_state(self) -> None:
        """Masters that are not the working weights, moments and ZeRO-3's gradients to the host. Collective."""
        self._write.settle()
        masters = [] if self._optimizer is self._adamw else self._masters()
        gradients = getattr(self._optimizer, "grad_partitions_flat_buffer", None)
        kept = [*masters, *moments(self._adamw), *([] if gradients is None else [gradients])]
        self._on_host.take(kept, self.device)
        self.barrier()

    def reload_state(self) -> None:
        """Back to the device, bit for bit. Collective."""
        self._write.settle()
        self._on_host.give_back()
        self.barrier()

    def set_masters(self, weights: Iterable[tuple[str, Tensor]]) -> int:
        """Start the float32 masters from `weights` (Hugging Face names) instead of the rounded working weights.

        A bfloat16 model whose masters are exactly its own weights loses small steps: an update below half a bfloat16
        spacing rounds back, for every weight at once. Masters from the unrounded checkpoint lie anywhere between two
        spacings, so small updates move the working weights in proportion. Frozen weights have no master and are passed
        over. Returns how many were set. Collective.
        """
        from deepspeed.utils import safe_set_full_fp32_param

        self._write.settle()
        parameters = trained_by_name(self.module)
        whole: dict[int, Tensor] = {}  # stage 0 keeps unpartitioned masters, which DeepSpeed's accessor does not know
        if self._config.zero_stage == 0:
            groups = zip(self._optimizer.fp16_groups, self._optimizer.fp32_groups, strict=True)
            whole = {id(p): m for working, masters in groups for p, m in zip(working, masters, strict=True)}
        count = 0
        for name, weight in weights:
            if name not in parameters:
                continue
            if whole:
                whole[id(parameters[name])].data.copy_(weight)
            elif self._config.zero_stage == 3:
                self._set_partition(parameters[name], weight.float())
            else:
                safe_set_full_fp32_param(parameters[name], weight.float())
            count += 1
        self._refresh_working_weights()
        self.barrier()
        return count

    def _set_partition(self, parameter: nn.Parameter, weight: Tensor) -> None:
        """This rank's part of a float32 master under ZeRO-3.

        Not by DeepSpeed's accessor: it cuts the weight by the length of a partition, which is rounded up, and fails at
        the last rank wherever the ranks do not divide the weight (0.19.8).
        """
        master, _ = self._optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False)
        start = master.numel() * self._optimizer._get_param_partition_rank(parameter)
        part = weight.reshape(-1)[start : start + master.numel()]
        master.data[: part.numel()].copy_(part)

    def barrier(self) -> None:
        """Wait for all ranks, at most the group's timeout. Collective."""
        dist.barrier()

    def close(self) -> None:
        """Drop DeepSpeed's hooks and leave the process group."""
        self._write.settle()
        self._deepspeed.destroy()
        dist.destroy_process_group()

    def _header(self) -> StateHeader:
        kind = f"zero-{self._config.zero_stage} {self._config.precision.value}"
        return StateHeader(kind, self.rank, self.world_size, self._applied_steps, self._frozen)

    def _masters(self) -> list[Tensor]:
        """The float32 tensors AdamW updates: trained parameters in stage 0, this rank's flat shards above."""
        optimizer = self._optimizer
        if self._config.zero_stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        if self._config.zero_stage > 0:
            return list(optimizer.single_partition_of_fp32_groups)
        if optimizer is self._adamw:
            return [*trained_parameters(self.module)]
        return [p for group in optimizer.fp32_groups for p in group]

    def _cut(self) -> Cut:
        """Which elements of which parameter `_masters` hold, by DeepSpeed's own records of it."""
        optimizer, parameters = self._optimizer, trained_by_name(self.module)
        pieces = []
        if self._config.zero_stage == 3:
            for name, p in parameters.items():
                group, offset, length = optimizer.grad_position[optimizer.get_param_id(p)]
                first = length * optimizer._get_param_partition_rank(p)
                count = min(length, prod(self._shapes[name]) - first)  # the last ranks' parts are filled up
                pieces.append(Piece(name, first, count, group, offset))
        elif self._config.zero_stage > 0:
            for name, p in parameters.items():
                if (held := p._hp_mapping) is not None:  # type: ignore[attr-defined]  # DeepSpeed's
                    part, place = held.lp_fragment_address, held.hp_fragment_address
                    pieces.append(Piece(name, part.start, part.numel, held.param_group_index, place.start))
        elif optimizer is self._adamw:
            return whole_cut(parameters.items())
        else:
            order = {id(p): i for i, p in enumerate(p for group in optimizer.fp16_groups for p in group)}
            pieces = [Piece(name, 0, p.numel(), order[id(p)], 0) for name, p in parameters.items()]
        return Cut(self._shapes, tuple(piece for piece in pieces if piece.count > 0))

    @torch.no_grad()
    def _refresh_working_weights(self) -> None:
        optimizer = self._optimizer
        if self._config.zero_stage == 3:
            optimizer._partition_all_parameters()
            optimizer.invalidate_secondary_tensor()  # what the ranks of a node keep is of the weights before
            for i, master in enumerate(optimizer.fp32_partitioned_groups_flat):
                optimizer.fp16_partitioned_groups_flat[i].data.copy_(master.data)
                optimizer._unflatten_partitioned_parameters(i)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        elif self._config.zero_stage > 0:
            optimizer.update_lp_params()
        elif optimizer is not self._adamw:
            for masters, working in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
                for master, parameter in zip(masters, working, strict=True):
                    parameter.data.copy_(master.data)


def _initialize(module: nn.Module, config: LearnerConfig, device: Device) -> DeepSpeedEngine:
    import deepspeed

    prepare_deepspeed()
    settings = deepspeed_config(config, device)
    optimizer: torch.optim.Optimizer = adamw(module, config.optim)  # while the weights have their shapes
    if config.zero_stage == 3:
        # Weight by weight, before `initialize`: that would move the whole model to this rank's device first.
        partition(module, settings, torch_dtype(config.precision))
    if config.offload_optimizer is Offload.cpu:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optim = config.optim
        optimizer = DeepSpeedCPUAdam(optimizer.param_groups, lr=0.0, betas=optim.betas, eps=optim.eps, adamw_mode=True)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


def _gather_buckets(named: list[tuple[str, nn.Parameter]], limit: int) -> Iterator[list[tuple[str, nn.Parameter]]]:
    bucket: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in named:
        numel: int = parameter.ds_numel  # type: ignore[attr-defined]  # DeepSpeed's: the whole tensor's
        num_bytes = numel * parameter.element_size()
        if bucket and size + num_bytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += num_bytes
    if bucket:
        yield bucket
