"""Digests of weight tensors: how the learner states what it sent and an engine states what it serves.

The digest covers dtype, shape and the canonical bytes, so it is equal on both sides exactly when every element is.
Canonical means: signed zero is +0, and bfloat16 subnormals are 0. Both are needed because an engine that packs its
weights is read back by multiplying with one-hot rows: a sum with zeros loses the sign of zero, and AVX512-BF16 dot
products treat subnormals (below 1.2e-38) as zero. Serving and training are the same number either way.
"""

from __future__ import annotations

import torch
import xxhash
from torch import Tensor

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


def dtype_name(dtype: torch.dtype) -> str:
    """The name used in a manifest: "float32", "bfloat16", "float16"."""
    return str(dtype).removeprefix("torch.")


def parse_dtype(name: str) -> torch.dtype:
    """Inverse of `dtype_name`. Raises ValueError naming the supported ones."""
    if name not in _DTYPES:
        raise ValueError(f"weight dtype {name!r} cannot be published; use one of {', '.join(sorted(_DTYPES))}")
    return _DTYPES[name]


def canonical(tensor: Tensor) -> Tensor:
    """A contiguous CPU copy with +0 for -0 and, in bfloat16, 0 for subnormals. Same shape and dtype."""
    plain = tensor.detach().cpu() + 0.0
    if plain.dtype == torch.bfloat16:
        plain.masked_fill_(plain.abs() < torch.finfo(torch.bfloat16).tiny, 0.0)
    return plain.contiguous()


def tensor_digest(tensor: Tensor) -> str:
    """Hex digest (xxh3, 128 bit) of dtype, shape and canonical bytes.

    It guards against mistakes, not against an attacker: weights never cross a trust boundary.
    """
    hasher = xxhash.xxh3_128(f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)} ".encode())
    hasher.update(canonical(tensor).view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
