"""Moving published weights from the learner to the rollout workers.

One node or CPU: rank 0 of the learner puts each bucket, as the pieces of a safetensors file, into the Ray object store
(one copy: the store's own), which every worker of a node maps (rollout/bucket.py says how its engine comes to them).
GPU: `NativeClient` carries the control calls of vLLM's own weight transfer; the tensors go over NCCL
(rollout/vllm_extension_sender.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from raylign.rollout.bucket import encode_bucket
from raylign.rollout.interfaces import EngineDead
from torch import Tensor


def put_bucket(tensors: Mapping[str, Tensor]) -> ray.ObjectRef:
    """Learner side: put one bucket into the object store."""
    return ray.put(encode_bucket(tensors))


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
