"""A pretended GPU: tensors that say they lie on a device "fakegpu" and are computed on the CPU, with real values.

Inside `FakeGPU()` an operation on tensors of both devices is an error, as on a GPU, and every point where the host
would wait for the device is noted with the line of ours that asked. It cannot show speed, memory or kernels' rounding.

torch offers the device (`_setup_privateuseone_for_python_backend`), a wrapper subclass the values. The fused kernel for
packed attention, which only GPUs have, is the definition here, segment by segment.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[3]
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations whose result the host must see: a number, or a size that depends on values."""


def device() -> torch.device:
    """The pretended one, made on first use."""
    if torch._C._get_privateuse1_backend_name() != "fakegpu":
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

        _setup_privateuseone_for_python_backend("fakegpu")
    return torch.device("fakegpu", 0)


class OnGPU(Tensor):
    """A tensor of the pretended device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> OnGPU:
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=device(), requires_grad=requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    is_cuda = property(lambda self: True)

    def data_ptr(self) -> int:
        """Of the values: as unique as on a device."""
        return self.held.data_ptr()

    def tolist(self) -> list:
        """Over the host, as a device's tensor does; torch has it for its own class alone."""
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"OnGPU({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the pretended GPU's mode")


class FakeGPU(TorchDispatchMode):
    """While it is entered the device works; `waits` are the host's, as "file:function"."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[str] = set()
        self.fused_calls = 0

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of the device with the values of a CPU one."""
        return OnGPU(tensor.detach().clone())

    def to(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module with its weights and buffers on the device; ties are kept."""
        moved: dict[int, torch.nn.Parameter] = {}
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None:
                    new = torch.nn.Parameter(self.put(parameter), requires_grad=parameter.requires_grad)
                    part._parameters[name] = moved.setdefault(id(parameter), new)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None:
                    part._buffers[name] = self.put(buffer)
        return module

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = [x for x in tree_leaves((args, kwargs)) if isinstance(x, OnGPU)]
        wanted = kwargs.get("device")
        target = torch.device(wanted) if wanted is not None else None
        if not there and (target is None or target.type != "fakegpu"):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        copies = name in ("_to_copy", "copy_")
        if there and not copies:
            self._refuse_mixing(func, args, kwargs)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        leaves = (target is not None and target.type == "cpu") or (name == "copy_" and not isinstance(args[0], OnGPU))
        if there and (name in WAITS or leaves or _by_mask(name, args)):
            self.waits.add(_asker())
        plain_args, plain_kwargs = tree_map(lambda x: x.held if isinstance(x, OnGPU) else x, (args, kwargs))
        result = self._compute(func, name, plain_args, plain_kwargs)
        if leaves:
            return args[0] if name == "copy_" else result
        known = {id(x.held): x for x in there}  # what was written in place stays the same tensor
        return tree_map(lambda x: _wrapped(x, known) if isinstance(x, Tensor) else x, result)

    def _compute(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "_varlen_attn":
            self.fused_calls += 1
            return _fused_forward(*args, **kwargs)
        if name == "_varlen_attn_backward":
            return _fused_backward(*args, **kwargs)
        if name == "mm" and func._overloadname == "dtype":
            return args[0].to(args[2]) @ args[1].to(args[2])
        return func(*args, **kwargs)

    def _refuse_mixing(self, func: Any, args: Any, kwargs: Any) -> None:
        for x in tree_flatten((args, kwargs))[0]:
            if isinstance(x, Tensor) and not isinstance(x, OnGPU) and x.ndim:
                raise RuntimeError(f"{func}: a CPU tensor {tuple(x.shape)} among the device's, asked by {_asker()}")


def _wrapped(held: Tensor, known: dict[int, OnGPU]) -> OnGPU:
    return known[id(held)] if id(held) in known else OnGPU(held)


def _by_mask(name: str, args: Any) -> bool:
    """Indexing by a mask finds out how many are set; writing one value under a mask does not."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])


def _asker() -> str:
    """The innermost line of the product on the stack, as "trainer/functional/packing.py:pack"."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "trainer") or path.is_relative_to(ROOT / "data"):
            return f"{path.relative_to(ROOT)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def _segments(cu_q: Tensor, cu_k: Tensor) -> list[tuple[slice, slice]]:
    q, k = cu_q.tolist(), cu_k.tolist()
    return [(slice(q[i], q[i + 1]), slice(k[i], k[i + 1])) for i in range(len(q) - 1)]


def _weights(query: Tensor, key: Tensor, scale: float, left: int) -> Tensor:
    """Softmax `[H, q, k]` of one sequence in float64. Its queries `[q, H, D]` are the last of its keys `[k, H, D]`; a
    query sees `left` keys before its own (-1: all).
    """
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    place = torch.arange(query.shape[0])[:, None] + key.shape[0] - query.shape[0]
    behind = place - torch.arange(key.shape[0])
    hidden = (behind < 0) | (behind > left if left >= 0 else behind < 0)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


class _Sequences:
    """What both passes of the fused kernel share."""

    def __init__(self, schema: Any, args: Any, kwargs: Any) -> None:
        self.given = dict(zip([a.name for a in schema._schema.arguments], args, strict=False)) | kwargs
        self._query, self._key, self._value = (self.given[name].double() for name in ("query", "key", "value"))
        self.group = self._query.shape[1] // self._key.shape[1]  # query heads a key head serves
        given, window = self.given.get("scale"), self.given.get("window_size")
        self.scale = self._query.shape[-1] ** -0.5 if given is None else given
        self._left = -1 if window is None else window[0]

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor, Tensor]]:
        """Rows of queries and of keys; queries, keys, values (repeated over a group), weights."""
        queries, keys = (self.given[name].tolist() for name in ("cu_seq_q", "cu_seq_k"))
        for q, k in zip(pairwise(queries), pairwise(keys), strict=True):
            query = self._query[slice(*q)]
            key, value = (x[slice(*k)].repeat_interleave(self.group, 1) for x in (self._key, self._value))
            yield slice(*q), slice(*k), query, key, value, _weights(query, key, self.scale, self._left)


def _fused_forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    sequences = _Sequences(torch.ops.torch_attn._varlen_attn.default, args, kwargs)
    output = torch.cat([torch.einsum("hqk,khd->qhd", p, value) for *_, value, p in sequences])
    output = output.to(sequences.given["query"].dtype)
    return output, torch.zeros(output.shape[1], output.shape[0]), torch.zeros(2, dtype=torch.int64)


def _fused_backward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    sequences = _Sequences(torch.ops.torch_attn._varlen_attn_backward.default, args, kwargs)
    given = sequences.given
    grads = [torch.zeros_like(given[name], dtype=torch.float64) for name in ("query", "key", "value")]
    for q, k, query, key, value, p in sequences:
        upstream = given["grad_out"][q].double()
        slope = p * (torch.einsum("qhd,khd->hqk", upstream, value) - (
            upstream * torch.einsum("hqk,khd->qhd", p, value)).sum(-1).T[..., None]
        )  # fmt: skip
        grads[0][q] = torch.einsum("hqk,khd->qhd", slope, key) * sequences.scale
        of_key = torch.einsum("hqk,qhd->khd", slope, query) * sequences.scale
        of_value = torch.einsum("hqk,qhd->khd", p, upstream)
        for grad, found in zip(grads[1:], (of_key, of_value), strict=True):
            grad[k] = found.unflatten(1, (-1, sequences.group)).sum(2)
    query, key, value = (grad.to(given["query"].dtype) for grad in grads)
    return query, key, value
