"""Norms and gated feed-forwards that keep less for backward; the numbers stay transformers' own, bit by bit in forward.

What a packed micro-batch keeps between forward and backward is most of a learner's memory. A norm written in plain
operations keeps four tensors of its input's size, a gated feed-forward the activation and its product with the gate as
well, which cost nothing beside a matrix product to make again.

A layer is replaced where it is written as Llama's is (Qwen, Mistral, SmolLM and many more are); each is tried on
numbers first and left as it was when they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from raylign.trainer.functional.rms_norm import rms_norm
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

_PROBE_ROWS = 3


def lean_layers(hf: PreTrainedModel, *, gated: bool) -> int:
    """Make norms lean, and gated feed-forwards when `gated`; returns how many layers changed.

    `gated=False` is for gradient checkpointing, which makes everything again anyway.
    """
    changed = 0
    for module in hf.base_model.modules():
        if lean := _lean_forward(module, gated=gated):
            module.forward = lean
            changed += 1
    return changed


def _lean_forward(module: Any, *, gated: bool) -> Callable[[Tensor], Tensor] | None:
    """A forward that gives the same numbers, for modules it is known for."""
    if not _takes_one(module):
        return None
    if _is_rms_norm(module):
        lean, width = partial(_norm, module), module.weight.shape[0]
    elif gated and _is_gated(module):
        lean, width = partial(_feed_forward, module), module.gate_proj.in_features
    else:
        return None
    return lean if _agree(module, lean, width) else None


def _takes_one(module: nn.Module) -> bool:
    """Gated norms (Qwen 3 Next's, say) take a gate besides what they normalise."""
    given = signature(module.forward).parameters.values()
    return len([p for p in given if p.kind is not Parameter.VAR_KEYWORD]) == 1


def _is_rms_norm(module: Any) -> bool:
    names = [name for name, _ in module.named_parameters()]
    return names == ["weight"] and module.weight.ndim == 1 and hasattr(module, "variance_epsilon")


def _is_gated(module: nn.Module) -> bool:
    children = dict(module.named_children())
    activation = children.pop("act_fn", None)
    linear = all(isinstance(child, nn.Linear) for child in children.values())
    return activation is not None and linear and children.keys() == {"gate_proj", "up_proj", "down_proj"}


@torch.no_grad()
def _agree(module: nn.Module, lean: Callable[[Tensor], Tensor], width: int) -> bool:
    like = next(module.parameters())
    drawn = torch.randn(1, _PROBE_ROWS, width, generator=torch.Generator().manual_seed(0))
    probe = drawn.to(like.device, like.dtype)
    return torch.equal(lean(probe), module.forward(probe))


def _norm(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon)


def _feed_forward(module: Any, x: Tensor) -> Tensor:
    """down(act(gate(x)) * up(x)); activation and product are made again in backward."""
    gate, up = module.gate_proj(x), module.up_proj(x)
    remade = _Remade(module.act_fn, gate.detach(), up.detach())
    activation = module.act_fn(gate)
    remade.remake(activation, _Remade.activation)
    with saved_tensors_hooks(remade.pack, _Remade.unpack):
        product = activation * up
        remade.remake(product, _Remade.product)
        output: Tensor = module.down_proj(product)
    return output


class _Remade:
    """One call's activation and product: recognised when autograd wants to keep them, made again when it asks."""

    def __init__(self, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> None:
        self._act, self._gate, self._up = act, gate, up
        self._recipes: dict[int, Callable[[_Remade], Tensor]] = {}  # by address
        self._activation: Tensor | None = None

    def remake(self, tensor: Tensor, recipe: Callable[[_Remade], Tensor]) -> None:
        """`tensor` need not be kept. It must live as long as `pack` is called: its address is what is recognised."""
        self._recipes[tensor.data_ptr()] = recipe

    def pack(self, tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        """What autograd keeps in place of `tensor`."""
        recipe = self._recipes.get(tensor.data_ptr())
        if recipe is None:
            return tensor
        shape = tensor.shape  # a projection sees it as a matrix
        return lambda: recipe(self).view(shape)

    @staticmethod
    def unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
        """The inverse of `pack`."""
        return kept if isinstance(kept, Tensor) else kept()

    def product(self) -> Tensor:
        """The projection's backward asks first; the activation made for it stays for `activation`."""
        self._activation = self._act(self._gate)
        return self._activation * self._up

    def activation(self) -> Tensor:
        """For the product's backward, which comes next."""
        made = self._act(self._gate) if self._activation is None else self._activation
        self._activation = None
        return made
