"""Buckets as they travel: a safetensors file in pieces, read back by the library."""

from __future__ import annotations

import asyncio
import os

import numpy as np
import torch
from raylign.cluster.weights import encode_bucket, shared_memory_file
from safetensors.torch import load, load_file, save

TENSORS = {
    "a.weight": torch.randn(3, 5).bfloat16(),  # 30 bytes: what follows would not be aligned
    "b.weight": torch.randn(4, 7),
    "c": torch.tensor(2.5),
    "d.weight": torch.randn(6, 4).t(),
    "e.bias": torch.randn(3).half(),
}


def test_the_pieces_are_the_file_that_the_library_writes() -> None:
    whole = np.concatenate(encode_bucket(TENSORS)).tobytes()
    theirs = load(save({name: tensor.contiguous() for name, tensor in TENSORS.items()}))
    ours = load(whole)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype and ours[name].equal(theirs[name]) for name in theirs)
    start = 8 + int.from_bytes(whole[:8], "little")
    assert start % 8 == 0 and len(whole) == start + sum(tensor.nbytes for tensor in TENSORS.values())


def test_a_tensor_is_not_copied() -> None:
    tensor = torch.zeros(10)
    pieces = encode_bucket({"t": tensor})
    tensor[3] = 1.0
    assert load(np.concatenate(pieces).tobytes())["t"][3] == 1.0


def test_the_file_is_private_and_gone_afterwards() -> None:
    async def read() -> str:
        async with shared_memory_file(encode_bucket(TENSORS)) as path:
            assert load_file(path)["b.weight"].equal(TENSORS["b.weight"])
            assert os.stat(path).st_mode & 0o777 == 0o600
            return path

    assert not os.path.exists(asyncio.run(read()))
