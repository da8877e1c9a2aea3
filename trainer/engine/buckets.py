"""Whole parameters grouped for sending: a bucket is one transfer, not one call a parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from trainer.engine.base import Engine


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """Some parameters of the model, by Hugging Face name."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]  # copies, free to keep or send

    @property
    def num_bytes(self) -> int:
        """Payload in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors)


def weights_to_buckets(engine: Engine, bucket_bytes: int) -> Iterator[WeightBucket]:
    """Group the engine's parameters into buckets of at most `bucket_bytes` (a larger tensor goes alone).

    Collective: every rank must run it to the end. Buckets come out on rank 0; other ranks only join the gathering and
    yield nothing. One bucket is held at a time.
    """
    names: list[str] = []
    tensors: list[Tensor] = []
    size = 0
    for name, tensor in engine.gathered_parameters():
        if engine.rank != 0:
            continue
        num_bytes = tensor.numel() * tensor.element_size()
        if names and size + num_bytes > bucket_bytes:
            yield WeightBucket(tuple(names), tuple(tensors))
            names, tensors, size = [], [], 0
        names.append(name)
        tensors.append(tensor.detach().clone())
        size += num_bytes
    if names:
        yield WeightBucket(tuple(names), tuple(tensors))
