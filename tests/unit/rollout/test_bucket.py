"""Buckets as they travel: a safetensors file in pieces, read back by the library."""

from __future__ import annotations

import asyncio
import os

import numpy as np
import pytest
import torch
from raylign.rollout.bucket import encode_bucket, handed_over, reach, read_bucket, shared_memory_file
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


@pytest.mark.parametrize("same_process", [True, False])
def test_an_engine_reads_what_was_written(same_process: bool) -> None:
    async def read() -> dict[str, torch.Tensor]:
        async with reach(encode_bucket(TENSORS), same_process=same_process) as where:
            assert where.startswith("/") is not same_process
            return dict(read_bucket(where))

    found = asyncio.run(read())
    assert found.keys() == TENSORS.keys()
    assert all(
        found[n].dtype == t.dtype and found[n].shape == t.shape and found[n].equal(t) for n, t in TENSORS.items()
    )


def test_an_engine_in_this_process_reads_the_memory_of_the_store_itself_and_keeps_it_alive() -> None:
    pieces = encode_bucket({"t": torch.arange(6.0)})
    pieces[1].flags.writeable = False  # as the object store maps it
    whole = pieces[1]

    async def read() -> torch.Tensor:
        async with handed_over(pieces) as where:
            return dict(read_bucket(where))["t"]

    tensor = asyncio.run(read())
    assert tensor.data_ptr() == whole.ctypes.data
    pieces.clear()
    del whole
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_name_is_gone_after_its_bucket() -> None:
    async def leave() -> str:
        async with handed_over(encode_bucket(TENSORS)) as where:
            return where

    with pytest.raises(KeyError):
        read_bucket(asyncio.run(leave()))


def test_pieces_that_are_not_the_header_s_are_refused() -> None:
    async def read(pieces: list[np.ndarray]) -> None:
        async with handed_over(pieces) as where:
            read_bucket(where)

    pieces = encode_bucket(TENSORS)
    with pytest.raises(ValueError, match="a bucket of 4 tensors has a header for 5"):
        asyncio.run(read(pieces[:-1]))
    with pytest.raises(ValueError, match="tensor c has 3 bytes in its bucket and 4 in its header"):
        asyncio.run(read([piece[:3] if piece.nbytes == 4 else piece for piece in pieces]))
