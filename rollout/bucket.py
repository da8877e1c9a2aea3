"""One bucket of published weights: the bytes of a safetensors file in pieces, and how an engine comes to them.

    learner: tensors ──encode──► pieces ──► object store, the one copy on a node, mapped by every worker
    worker:  pieces ──handed_over──► an engine in the same process reads the mapped memory itself
                    ──shared_memory_file──► an engine in another process maps a file

Safetensors only: no tensor is unpickled.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import tempfile
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

SHARED_MEMORY = "/dev/shm"
Pieces = list[NDArray[np.uint8]]
"""The bytes of one safetensors file, end to end: its header, then each tensor. On CPU the tensors' own memory."""

_FORMAT_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_FORMATS = {name: dtype for dtype, name in _FORMAT_NAMES.items()}
_HERE = "here:"
_handed: dict[str, Pieces] = {}
_numbers = itertools.count()


def encode_bucket(tensors: Mapping[str, Tensor]) -> Pieces:
    """A bucket as a safetensors file in pieces, which share memory with CPU tensors: hand them on before those change.

    The format: 8 bytes of header size, a JSON header, then the tensors without gaps, wider types first so that every
    one is aligned (https://huggingface.co/docs/safetensors, "Format").
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    plain = dict(sorted(plain.items(), key=lambda item: -item[1].element_size()))
    entries, start = {}, 0
    for name, tensor in plain.items():
        offsets = [start, start + tensor.nbytes]
        entries[name] = {"dtype": _FORMAT_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        start = offsets[1]
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    first = np.frombuffer(len(header).to_bytes(8, "little") + header, dtype=np.uint8)
    return [first, *(tensor.view(-1).view(torch.uint8).numpy() for tensor in plain.values())]


def reach(pieces: Pieces, *, same_process: bool) -> AbstractAsyncContextManager[str]:
    """Where an engine finds `pieces` as long as the context is open: a name for `read_bucket`."""
    return handed_over(pieces) if same_process else shared_memory_file(pieces)


@asynccontextmanager
async def handed_over(pieces: Pieces) -> AsyncIterator[str]:
    """For an engine in this process: no copy."""
    where = f"{_HERE}{next(_numbers)}"
    _handed[where] = pieces
    try:
        yield where
    finally:
        del _handed[where]


@asynccontextmanager
async def shared_memory_file(pieces: Pieces) -> AsyncIterator[str]:
    """Path of a file (mode 0600, removed at the end) holding `pieces`; in shared memory where there is one.

    Written in a thread: meanwhile the engine loads the bucket before.
    """
    folder = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None
    with tempfile.NamedTemporaryFile(prefix="raylign-", suffix=".safetensors", dir=folder) as file:
        await asyncio.to_thread(_write, file, pieces)
        yield file.name


def read_bucket(where: str) -> list[tuple[str, Tensor]]:
    """The tensors at `where`, on the CPU and not to be written to: they share the bucket's memory and keep it alive.

    Raises ValueError for bytes that are not what their header says.
    """
    if where.startswith(_HERE):
        return _decode(_handed[where])
    with safe_open(where, framework="pt", device="cpu") as bucket:
        return [(name, bucket.get_tensor(name)) for name in bucket.keys()]  # noqa: SIM118 (no dict)


def _decode(pieces: Pieces) -> list[tuple[str, Tensor]]:
    entries = json.loads(pieces[0][8:].tobytes())
    if len(entries) != len(pieces) - 1:
        raise ValueError(f"a bucket of {len(pieces) - 1} tensors has a header for {len(entries)}")
    tensors = []
    for (name, entry), piece in zip(entries.items(), pieces[1:], strict=True):
        start, stop = entry["data_offsets"]
        if piece.nbytes != stop - start:
            raise ValueError(f"tensor {name} has {piece.nbytes} bytes in its bucket and {stop - start} in its header")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the object store's memory is read-only
            tensors.append((name, torch.from_numpy(piece).view(_FORMATS[entry["dtype"]]).view(entry["shape"])))
    return tensors


def _write(file: IO[bytes], pieces: Pieces) -> None:
    for piece in pieces:
        file.write(piece.data)
    file.flush()
