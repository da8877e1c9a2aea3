"""One learner rank's part in a transfer of weights by broadcast (rollout/broadcast.py): rank 0 sends, all gather."""

from __future__ import annotations

import torch
import torch.distributed as dist
from raylign.rollout.broadcast import TransferGroup, open_link
from raylign.rollout.fingerprint import dtype_name, tensor_digest
from raylign.rollout.interfaces import TensorSpec, TransferLink, WeightUpdateError
from raylign.trainer.engine.base import Engine
from raylign.trainer.engine.buckets import whole_weights
from torch import Tensor


class WeightTransfer:
    """Of one rank. What fails here is a transfer, which another may make good: it is told, not raised."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._announced: tuple[TensorSpec, ...] = ()
        self._meeting: tuple[TransferLink, dist.Store] | None = None
        self._group: TransferGroup | None = None

    def announce(self) -> tuple[TensorSpec, ...]:
        """What the present weights are, adapters merged; empty where another rank has them. Collective."""
        self._announced = tuple(described(name, tensor) for name, tensor in whole_weights(self._engine))
        return self._announced

    def open(
        self, address: str, *, workers: int, ranks_per_worker: int, timeout_s: float, bucket_bytes: int
    ) -> TransferLink:
        """Where to meet, at `address` of this node; what is left of an earlier transfer is abandoned. Rank 0 alone."""
        self._abandon()
        self._meeting = open_link(
            address,
            workers=workers,
            ranks_per_worker=ranks_per_worker,
            timeout_s=timeout_s,
            bucket_bytes=bucket_bytes,
        )
        return self._meeting[0]

    def meet(self) -> str:
        """Why the workers were not met; empty when they were. Rank 0 alone."""
        if self._meeting is None:
            return "no transfer was begun"
        link, store = self._meeting
        self._group, self._meeting = TransferGroup(link, self._engine.rank, self._device, store), None
        try:
            self._group.meet()
        except WeightUpdateError as error:
            return str(error)
        return ""

    def send(self) -> str:
        """Broadcast the announced weights; why it broke off, or empty. Collective: all ranks gather to the end."""
        weights = whole_weights(self._engine)
        why = ""
        if self._engine.rank == 0:
            group, self._group = self._group, None
            try:
                if group is None:
                    raise WeightUpdateError("no transfer was joined")
                group.send(self._announced, weights)
            except WeightUpdateError as error:
                why = str(error)
        for _ in weights:
            pass  # the other ranks wait in the gathering of what is left
        return why

    def _abandon(self) -> None:
        if self._group is not None:
            self._group.abandon()
        self._group = self._meeting = None

    @property
    def _device(self) -> torch.device:
        return next(self._engine.module.parameters()).device


def described(name: str, tensor: Tensor) -> TensorSpec:
    """A tensor as a manifest announces it."""
    return TensorSpec(name, tuple(tensor.shape), dtype_name(tensor.dtype), tensor_digest(tensor))
