"""A linear layer with a low-rank adapter (LoRA, Hu et al. 2021, arXiv:2106.09685), and whole weights made of the two.

    y = x W' + scale (x A') B'        W [out, in] frozen, A [rank, in] and B [out, rank] trained, B = 0 at the start

peft's own layers are not used for training: here the frozen weight keeps its Hugging Face name, one module holds all
three tensors (ZeRO-3 gathers once, not three times), the product is added in place, and A is drawn from a seed by name.
The form on disk is peft's (trainer/models/adapters.py), and the tests hold every number against peft's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import xxhash
from raylign.rollout.adapters import A, B, generator_of, merge
from torch import Tensor, nn
from torch.nn import functional as F


class LoraLinear(nn.Module):
    """Takes the place of a `nn.Linear`; its parameters keep their names, those of the adapter come beside them."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        out_features, in_features = linear.weight.shape
        # In this order: whoever reads the parameters one by one has the adapter when the weight comes.
        self.lora_A = nn.Parameter(linear.weight.new_zeros(rank, in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(out_features, rank))
        self.weight = linear.weight
        self.bias = linear.bias
        self.off = False  # see adapters_off
        self.rank, self.scale, self.in_features = rank, scale, in_features  # ZeRO-3 leaves parameters without a shape

    def forward(self, x: Tensor) -> Tensor:
        """x `[..., in]` -> `[..., out]`."""
        if self.off:
            return F.linear(x, self.weight, self.bias)
        rows = x.flatten(0, -2)
        added = F.linear(rows, self.weight, self.bias).addmm_(
            F.linear(rows, self.lora_A), self.lora_B.T, alpha=self.scale
        )
        return added.view(*x.shape[:-1], -1)

    def draw_a(self, seed: int, name: str) -> Tensor:
        """A's start `[rank, in]` in float32, as peft draws it: uniform within 1 / sqrt(in). The same on every rank."""
        drawn = torch.rand(self.rank, self.in_features, generator=generator_of(f"{seed} {name}", torch.device("cpu")))
        return (drawn * 2 - 1) * self.in_features**-0.5

    def merged(self, weight: Tensor, a: Tensor, b: Tensor, name: str) -> Tensor:
        """The whole weight `[out, in]` that does what the layer does."""
        return merge(weight, a, b, self.scale, name)


def lora_layers(module: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers below `module` by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLinear)}


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Within it the model below `module` is its frozen part. Raises ValueError when it has no adapter."""
    layers = lora_layers(module)
    if not layers:
        raise ValueError("the model has no adapters to leave out")
    for layer in layers.values():
        layer.off = True
    try:
        yield
    finally:
        for layer in layers.values():
            layer.off = False


def is_adapter(name: str) -> bool:
    """True for a parameter that merging takes away."""
    return name.endswith((f".{A}", f".{B}"))


def merged_weights(
    named: Iterable[tuple[str, Tensor]], layers: Mapping[str, LoraLinear]
) -> Iterator[tuple[str, Tensor]]:
    """Whole weights from parameters one by one, with those of `layers` merged; names stay, adapters are gone.

    Tensors of adapters are held until the weight that they adapt comes.
    """
    held: dict[str, Tensor] = {}
    for name, tensor in named:
        layer, _, part = name.rpartition(".")
        if layer not in layers or part == "bias":
            yield name, tensor
        elif is_adapter(name):
            held[part] = tensor.detach()
        else:
            yield name, layers[layer].merged(tensor.detach(), held.pop(A), held.pop(B), name)


def frozen_digest(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """What the trained weights mean nothing without: every frozen weight, and how it is adapted.

    Empty when none is frozen. Weights must be whole and on the CPU. `dtype`: what they will be; None: what they are.
    """
    frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
    if not frozen:
        return ""
    hasher = xxhash.xxh3_128()
    for name, layer in lora_layers(module).items():
        hasher.update(f"{name} {layer.rank} {layer.scale!r} ".encode())
    for name, parameter in frozen:
        weight = parameter.detach().to(dtype or parameter.dtype)
        hasher.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        hasher.update(weight.contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
