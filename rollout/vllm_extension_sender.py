"""The learner's side of vLLM's own NCCL weight transfer (GPU).

Rank 0 of the learner broadcasts; every rank iterates the weights, because gathering them is collective. The workers'
side is vLLM's, driven by `cluster.weights.NativeClient`, and observed and verified by `vllm_extension.WeightReceiver`.

Not run: no machine with a GPU was at hand. Tested on CPU: the init and update structures, the order of the control
calls, and that what is announced is what is sent. vLLM's `ipc` backend is left out on purpose: its handles hold Python
classes, which an engine accepts only with VLLM_ALLOW_INSECURE_SERIALIZATION=1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from raylign.rollout.fingerprint import parse_dtype
from raylign.rollout.interfaces import TensorSpec
from torch import Tensor
from vllm.distributed.weight_transfer import (
    ParamMeta,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine


class PublishedWeights(WeightSource):
    """Our gathered parameters as vLLM's re-iterable source; what is announced comes from the manifest."""

    def __init__(self, tensors: Sequence[TensorSpec], weights: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        """`weights`: a fresh pass over all parameters, collective over the learner's ranks."""
        self._tensors, self._weights = tuple(tensors), weights

    def metadata(self) -> list[ParamMeta]:
        """Name, wire dtype and full shape, in sending order."""
        return [ParamMeta(spec.name, parse_dtype(spec.dtype), spec.shape) for spec in self._tensors]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors in wire dtype."""
        dtypes = {spec.name: parse_dtype(spec.dtype) for spec in self._tensors}
        for name, tensor in self._weights():
            yield name, tensor.to(dtypes[name])


def open_sender(
    source: PublishedWeights,
    client: VLLMWeightSyncClient,
    *,
    rank: int,
    num_receivers: int,
    address: str,
    port: int,
) -> NCCLTrainerWeightTransferEngine:
    """Join the transfer group, on every learner rank; `send_weights()` then sends one version.

    `num_receivers`: tensor-parallel ranks of all workers together; `address`, `port`: rendezvous on rank 0's node.
    """
    info = NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=1 + num_receivers, rank=rank)
    with torch.no_grad():
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
