"""Moving published weights from the learner to the rollout workers.

One node or CPU: rank 0 of the learner puts each bucket, as the pieces of a safetensors file, into the Ray object store
(one copy: the store's own); a worker maps it without a copy, writes it to a private file in shared memory, lets the
engine load it by path (an engine core may be another process, its calls carry only plain types), and removes the file.
Safetensors only: no tensor is unpickled.
GPU: `NativeClient` carries the control calls of vLLM's own weight transfer; the tensors go over NCCL
(rollout/vllm_extension_sender.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from raylign.rollout.interfaces import EngineDead
from torch import Tensor

SHARED_MEMORY = "/dev/shm"
Pieces = list[NDArray[np.uint8]]
"""The bytes of one safetensors file, end to end. On CPU the pieces are the tensors' own memory."""

_FORMAT_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


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


def put_bucket(tensors: Mapping[str, Tensor]) -> ray.ObjectRef:
    """Learner side: put one bucket into the object store."""
    return ray.put(encode_bucket(tensors))


@asynccontextmanager
async def shared_memory_file(pieces: Pieces) -> AsyncIterator[str]:
    """Path of a file (mode 0600, removed at the end) holding `pieces`; in shared memory where there is one.

    Written in a thread: meanwhile the engine loads the bucket before.
    """
    folder = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None
    with tempfile.NamedTemporaryFile(prefix="raylign-", suffix=".safetensors", dir=folder) as file:
        await asyncio.to_thread(_write, file, pieces)
        yield file.name


def _write(file: IO[bytes], pieces: Pieces) -> None:
    for piece in pieces:
        file.write(piece.data)
    file.flush()


class NativeClient:
    """The learner's control channel to workers when vLLM's own engines move the tensors (`VLLMWeightSyncClient`).

    vLLM's `RayVLLMWeightSyncClient` waits without a deadline; this one names the worker that is late.
    Not run on a GPU yet; the call sequence and argument shapes are tested on CPU.
    """

    def __init__(self, workers: Mapping[str, ActorHandle], *, ranks_per_worker: int, timeout_s: float) -> None:
        """`workers`: name -> rollout worker actor; `ranks_per_worker`: its tensor-parallel size."""
        self._workers, self._ranks, self._timeout_s = dict(workers), ranks_per_worker, timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Workers join the transfer group; ranks follow the order of `workers`, after the sender's 0.

        vLLM gives every receiver the same `rank_offset`, right for one deployment: separate engines would collide.
        """
        offset = init_info["rank_offset"]
        calls = [
            worker.init_native_transfer.remote(init_info | {"rank_offset": offset + i * self._ranks})
            for i, worker in enumerate(self._workers.values())
        ]
        self._wait("init_weight_transfer_engine", calls)

    def start_weight_update(self) -> None:
        """Workers prepare their layers for new weights."""
        self._wait("start_weight_update", [worker.start_native_update.remote() for worker in self._workers.values()])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Workers receive: runs while the sender broadcasts."""
        calls = [worker.receive_native_weights.remote(update_info) for worker in self._workers.values()]
        self._wait("update_weights", calls)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Workers put the weights in place. The version is set by `resume`, once they are verified."""
        self._wait("finish_weight_update", [worker.finish_native_update.remote() for worker in self._workers.values()])

    def _wait(self, verb: str, refs: Sequence[ray.ObjectRef]) -> None:
        _, late = ray.wait(list(refs), num_returns=len(refs), timeout=self._timeout_s)
        if late:
            names = [name for name, ref in zip(self._workers, refs, strict=True) if ref in late]
            raise EngineDead(f"{', '.join(names)} did not finish {verb} within {self._timeout_s:g} s")
        for name, ref in zip(self._workers, refs, strict=True):
            try:
                ray.get(ref, timeout=self._timeout_s)
            except (RayError, GetTimeoutError) as error:
                raise EngineDead(f"{name}: {verb}: {error}") from error
