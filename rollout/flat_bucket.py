"""What a manifest announces, cut into buckets that travel as one run of bytes each. Sender and receivers cut alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from raylign.rollout.fingerprint import dtype_name, parse_dtype
from raylign.rollout.interfaces import DTYPE_BYTES, TensorSpec, WeightUpdateError
from torch import Tensor

_ALIGNED = 16  # bytes; enough for a view of every format


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tensors that travel in one buffer, and where each begins in it."""

    tensors: tuple[TensorSpec, ...]
    starts: tuple[int, ...]
    num_bytes: int

    def packed(self, weights: Iterator[tuple[str, Tensor]], device: torch.device) -> Tensor:
        """The next tensors of `weights` in one buffer `[num_bytes]` on `device`.

        Raises WeightUpdateError where they are not what was announced.
        """
        buffer = torch.empty(self.num_bytes, dtype=torch.uint8, device=device)
        for spec, place in zip(self.tensors, self.unpacked(buffer), strict=True):
            name, tensor = next(weights, ("nothing", torch.empty(0)))
            if (name, tuple(tensor.shape), dtype_name(tensor.dtype)) != (spec.name, spec.shape, spec.dtype):
                raise WeightUpdateError(f"{name} {tuple(tensor.shape)} is to be sent where {spec.name} was announced")
            place[1].copy_(tensor)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the broadcast is another thread's
        return buffer

    def unpacked(self, buffer: Tensor) -> list[tuple[str, Tensor]]:
        """The tensors of a buffer, as views."""
        return [
            (spec.name, buffer[start : start + _size(spec)].view(parse_dtype(spec.dtype)).view(spec.shape))
            for spec, start in zip(self.tensors, self.starts, strict=True)
        ]


def buckets(tensors: Sequence[TensorSpec], bucket_bytes: int) -> Iterator[Bucket]:
    """Cut what a manifest announces into buckets of at most `bucket_bytes` (a larger tensor goes alone), in order."""
    chosen: list[TensorSpec] = []
    starts: list[int] = []
    end = 0
    for spec in tensors:
        start = -(-end // _ALIGNED) * _ALIGNED
        if chosen and start + _size(spec) > bucket_bytes:
            yield Bucket(tuple(chosen), tuple(starts), end)
            chosen, starts, start = [], [], 0
        chosen.append(spec)
        starts.append(start)
        end = start + _size(spec)
    if chosen:
        yield Bucket(tuple(chosen), tuple(starts), end)


def _size(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * DTYPE_BYTES[spec.dtype]
