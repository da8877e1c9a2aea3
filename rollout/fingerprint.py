"""Digests of weight tensors: how the learner states what it sent and an engine states what it serves.

Two kinds, which differ in how a digest begins:

    <32 hex digits>      xxh3 (128 bit) of dtype, shape and canonical bytes; for tensors on the CPU
    add64:<16 digits>    sum over elements of u(row) v(column) bits(element) mod 2^64; for tensors on a GPU

The second needs no copy to the CPU, and digests of disjoint parts of a tensor add up to the whole one's: a
tensor-parallel rank digests what it holds and nothing else. u and v are odd, so one changed element always shows.

Canonical means: signed zero is +0, and bfloat16 subnormals are 0. Both are needed because an engine that packs its
weights is read back by multiplying with one-hot rows: a sum with zeros loses the sign of zero, and AVX512-BF16 dot
products treat subnormals (below 1.2e-38) as zero. Serving and training are the same number either way.

They guard against mistakes, not against an attacker: weights never cross a trust boundary.
"""

from __future__ import annotations

from enum import Enum

import torch
import xxhash
from torch import Tensor

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
_ADDITIVE = "add64:"
_EXPONENT_BF16 = 0x7F80  # without a bit here a bfloat16 is zero or subnormal
_CPU_PIECE = 1 << 18
"""Elements made canonical at once on the CPU: what is read, written and hashed stays in the cache. A canonical copy of
the whole tensor costs a page fault every 4 KB, many times the hash."""
_DEVICE_PIECE = 1 << 24
"""Elements whose 64-bit products are held at once on a GPU: two blocks of 128 MB. On the CPU _CPU_PIECE."""


class DigestKind(Enum):
    """How a tensor is digested."""

    XXH3 = "xxh3"
    ADDITIVE = "additive"


def dtype_name(dtype: torch.dtype) -> str:
    """The name used in a manifest: "float32", "bfloat16", "float16"."""
    return str(dtype).removeprefix("torch.")


def parse_dtype(name: str) -> torch.dtype:
    """Inverse of `dtype_name`. Raises ValueError naming the supported ones."""
    if name not in _DTYPES:
        raise ValueError(f"weight dtype {name!r} cannot be published; use one of {', '.join(sorted(_DTYPES))}")
    return _DTYPES[name]


def digest_kind(digest: str) -> DigestKind:
    """Which kind a digest is of."""
    return DigestKind.ADDITIVE if digest.startswith(_ADDITIVE) else DigestKind.XXH3


def tensor_digest(tensor: Tensor, kind: DigestKind | None = None) -> str:
    """Digest of a whole tensor; `kind`: by default the one for the device it lies on."""
    if (kind or (DigestKind.ADDITIVE if tensor.is_cuda else DigestKind.XXH3)) is DigestKind.ADDITIVE:
        return part_digest(tensor)
    hasher = xxhash.xxh3_128(f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().cpu().contiguous().view(-1)
    scratch = torch.empty(min(_CPU_PIECE, flat.numel()), dtype=tensor.dtype)
    for start in range(0, flat.numel(), _CPU_PIECE):
        piece = flat[start : start + _CPU_PIECE]
        hasher.update(_canonical(piece, scratch[: len(piece)]).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def part_digest(part: Tensor, *, first_row: int = 0, columns: Tensor | None = None, first_column: int = 0) -> str:
    """Additive digest of a part of a tensor by where it lies there.

    part `[R]` or `[R, ...]` (further dimensions count as columns); its rows are `first_row`, `first_row` + 1, ... of
    the whole, its columns `columns` `[C]` when given, else those from `first_column` on. A one-dimensional tensor is a
    column of rows, so that parts of a bias add up as those of a matrix do.
    """
    flat = part.detach().reshape(part.shape[0] if part.ndim else 1, -1)
    rows, width = flat.shape
    if columns is None:
        columns = torch.arange(first_column, first_column + width, device=flat.device)
    by_column = _odd_hash(columns.to(flat.device), salt=1)
    by_row = _odd_hash(torch.arange(first_row, first_row + rows, device=flat.device), salt=2)
    step = max(1, (_DEVICE_PIECE if flat.is_cuda else _CPU_PIECE) // max(width, 1))
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, rows, step):
        products = _canonical_bits(flat[start : start + step]).mul_(by_column)
        total += (products.sum(1) * by_row[start : start + step]).sum()
    return f"{_ADDITIVE}{int(total) % 2**64:016x}"


def sum_of_parts(digests: list[str]) -> str:
    """The digest of a tensor from those of parts that cover it once."""
    total = sum(int(digest.removeprefix(_ADDITIVE), 16) for digest in digests)
    return f"{_ADDITIVE}{total % 2**64:016x}"


def _canonical(piece: Tensor, out: Tensor) -> Tensor:
    """A flat piece `[n]` with +0 for -0 and, in bfloat16, 0 for subnormals, in `out`."""
    if piece.dtype is torch.bfloat16:
        bits = piece.view(torch.int16)
        torch.mul(bits, (bits & _EXPONENT_BF16).ne_(0), out=out.view(torch.int16))
    else:
        torch.add(piece, 0.0, out=out)
    return out


def _canonical_bits(part: Tensor) -> Tensor:
    """The bits of canonical elements as int64 (sign extended, alike on every device), the same shape."""
    if part.dtype is torch.bfloat16:
        bits = part.contiguous().view(torch.int16)
        return bits.masked_fill((bits & _EXPONENT_BF16) == 0, 0).to(torch.int64)
    whole = {2: torch.int16, 4: torch.int32}[part.element_size()]
    return (part + 0.0).contiguous().view(whole).to(torch.int64)


def _odd_hash(index: Tensor, *, salt: int) -> Tensor:
    """splitmix64 (Steele, Lea and Flood 2014) of int64 indices, made odd. Products wrap around, as they should."""
    x = (index + 1) * _signed(0x9E3779B97F4A7C15) + salt
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return (x ^ _shifted(x, 31)) | 1


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's carries the sign along."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant
