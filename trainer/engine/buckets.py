"""Whole weights as Hugging Face has them, grouped for sending: a bucket is one transfer, not one call a parameter.

What is served and what is exported both come from here, so neither ever knows of adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raylign.trainer.engine.base import WRAPPER_PREFIX, Engine
from raylign.trainer.models.lora import LoraLinear, is_adapter, lora_layers, merged_weights
from torch import Tensor


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """Some parameters of the model, by Hugging Face name."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]  # perhaps the model's own memory: use them before it trains on

    @property
    def num_bytes(self) -> int:
        """Payload in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors)


def weights_to_buckets(engine: Engine, bucket_bytes: int) -> Iterator[WeightBucket]:
    """Group the model's weights, adapters merged, into buckets of at most `bucket_bytes` (a larger one goes alone).

    Collective: every rank must run it to the end. Buckets come out on rank 0; other ranks only join the gathering and
    yield nothing. One bucket is held at a time.
    """
    names: list[str] = []
    tensors: list[Tensor] = []
    size = 0
    for name, tensor in whole_weights(engine):
        num_bytes = tensor.numel() * tensor.element_size()
        if names and size + num_bytes > bucket_bytes:
            yield WeightBucket(tuple(names), tuple(tensors))
            names, tensors, size = [], [], 0
        names.append(name)
        tensors.append(tensor.detach())
        size += num_bytes
    if names:
        yield WeightBucket(tuple(names), tuple(tensors))


def whole_weights(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """The model's weights one by one, adapters merged, perhaps as the model's own memory.

    Collective, as `weights_to_buckets`: rank 0 gets them, other ranks only join the gathering.
    """
    gathered = (pair for pair in engine.gathered_parameters() if engine.rank == 0)
    return merged_weights(gathered, adapted_layers(engine))


def adapted_layers(engine: Engine) -> dict[str, LoraLinear]:
    """The model's layers with an adapter, by Hugging Face name."""
    return {name.removeprefix(WRAPPER_PREFIX): layer for name, layer in lora_layers(engine.module).items()}


def weights_and_adapters(engine: Engine, adapters: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The model's weights one by one, adapters merged; `adapters` gets those that went in, by parameter name.

    Collective, as `weights_to_buckets`.
    """

    def noted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in engine.gathered_parameters():
            if engine.rank == 0:
                if is_adapter(name):
                    adapters[name] = tensor.detach()
                yield name, tensor

    yield from merged_weights(noted(), adapted_layers(engine))
