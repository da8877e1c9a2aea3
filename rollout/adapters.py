"""Adapters merged into the weights they adapt: by the learner for what it publishes whole, by an engine that is sent
the adapters alone and keeps no second model: the frozen weights are the pages of its model folder.

Both sides run the same sum and the same draw, so the learner's digest of a merged tensor holds for the engine's. Where
it does not (another kind of processor or card, another folder) the publication is refused like any other that is wrong,
and all weights are sent.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
import xxhash
from raylign.rollout.interfaces import AdapterSpec, TensorSpec, WeightUpdateError
from safetensors import SafetensorError, safe_open
from torch import Tensor

A, B = "lora_A", "lora_B"
_INDEX = "model.safetensors.index.json"


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float, name: str) -> Tensor:
    """weight + scale b a: the whole weight `[out, in]` that does what the layer does, rounded once to weight's format.

    weight `[out, in]`, a `[rank, in]`, b `[out, rank]`; the sum is float32. A bfloat16 weight is on the bfloat16 grid,
    and most adapters move it by less than half a spacing: rounded to the nearest they would be gone, and the engines
    would serve the base. `name` seeds the rounding.
    """
    whole = torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)
    return round_in_proportion(whole, name) if weight.dtype is torch.bfloat16 else whole.to(weight.dtype)


def round_in_proportion(x: Tensor, name: str) -> Tensor:
    """float32 -> bfloat16, away from zero with the probability of the part that is cut off: right on average.

    What is on the grid stays. The same draw for a name every time, so weights that did not move are rounded as before.
    Overwrites `x`.
    """
    draw = torch.randint(1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator_of(name, x.device))
    x.view(torch.int32).add_(draw).bitwise_and_(-1 << 16)  # bfloat16 is the upper half of a float32
    return x.to(torch.bfloat16)


def generator_of(text: str, device: torch.device) -> torch.Generator:
    """Seeded by a text."""
    return torch.Generator(device).manual_seed(xxhash.xxh64_intdigest(text.encode()) >> 1)


def part_name(weight: str, part: str) -> str:
    """The name under which A or B of a weight travels."""
    return f"{weight.removesuffix('.weight')}.{part}"


class AdapterUpdate:
    """One publication of adapters alone, as one rank of an engine sees it."""

    def __init__(self, folder: str | Path, adapters: Iterable[AdapterSpec]) -> None:
        """`folder`: of the model that the learner started from, whose weights it has not moved."""
        self._folder, self._adapters = Path(folder), {spec.weight: spec for spec in adapters}
        self._arrived: dict[str, Tensor] = {}

    @property
    def weights(self) -> Collection[str]:
        """Names of the weights that change."""
        return self._adapters.keys()

    def receive(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Keep a bucket's tensors. Raises WeightUpdateError for one that is no announced adapter's, or comes twice."""
        known = {part_name(name, part) for name in self._adapters for part in (A, B)}
        for name, tensor in tensors:
            if name not in known or name in self._arrived:
                why = "arrived twice" if name in known else "is of no announced adapter"
                raise WeightUpdateError(f"tensor {name} {why}")
            self._arrived[name] = tensor

    def whole_weights(self, specs: Iterable[TensorSpec], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Each tensor of `specs` whole, one at a time: merged, or as the folder has it when it has no adapter (a layer
        that fuses both is loaded as one). What never arrived is left out.

        Raises WeightUpdateError for a weight that the folder does not store under its name.
        """
        stored = _StoredWeights(self._folder)
        for spec in specs:
            adapter = self._adapters.get(spec.name)
            parts = [self._arrived.get(part_name(spec.name, part)) for part in (A, B)] if adapter else []
            if any(part is None for part in parts):
                continue
            weight = stored.read(spec).to(device)
            if adapter is None:
                yield spec.name, weight
            else:
                a, b = (part.to(device) for part in parts if part is not None)
                yield spec.name, merge(weight, a, b, adapter.scale, spec.name)


class _StoredWeights:
    """The tensors of a model folder, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = _stored_files(folder)

    def read(self, spec: TensorSpec) -> Tensor:
        """In the format that is published."""
        file = self._files.get(spec.name)
        if file is None:
            raise WeightUpdateError(f"{self._folder} stores no tensor {spec.name}: its adapter cannot be merged here")
        with safe_open(file, framework="pt", device="cpu") as opened:
            tensor = opened.get_tensor(spec.name)
        return tensor.to({"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[spec.dtype])


def _stored_files(folder: Path) -> Mapping[str, Path]:
    """Which file of a folder holds each tensor. Raises WeightUpdateError when that cannot be read."""
    try:
        index = folder / _INDEX
        if index.is_file():
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: folder / file for name, file in named.items()}
        found: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        return found
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise WeightUpdateError(f"{folder}: its weights cannot be read again: {error}") from error
