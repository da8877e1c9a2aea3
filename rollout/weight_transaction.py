"""One weight update as one rank of an engine sees it: what was announced, what arrived, what is served. Pure torch.

The chain that is checked, tensor by tensor and exactly, with digests of whole tensors (CPU):
manifest digest = digest of what arrived, and digest of this rank's slice of what arrived = digest of what it serves.
With additive digests (GPU) a rank digests only what it serves: the ranks' parts add up to the manifest's digest
(rollout/reports.py). A rank that serves another precision than was sent compares as on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from raylign.rollout.fingerprint import DigestKind, digest_kind, dtype_name, part_digest, tensor_digest
from raylign.rollout.interfaces import TensorSpec, WeightUpdateError
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ServedPart:
    """A published tensor (or this rank's slice of it) as it lies in a served module."""

    name: str  # Hugging Face name
    source: str  # the published tensor it comes from: the embedding for a tied lm_head, else `name`
    rows: slice  # of the published tensor
    columns: slice  # of the published tensor; slice(None) for one-dimensional tensors
    local_rows: slice  # of the module's own tensor, which may fuse several parts

    def slice_of(self, full: Tensor) -> Tensor:
        """What this rank should serve of the published tensor."""
        return full[self.rows] if full.ndim < 2 else full[self.rows, self.columns]


@dataclass(frozen=True, slots=True)
class ServedModule:
    """One tensor in the engine, and how to read what it *really* multiplies with."""

    parts: tuple[ServedPart, ...]
    shape: tuple[int, ...]  # of the local tensor
    dtype: torch.dtype
    packed: bool  # read back through the layer, so every column costs a product
    read: Callable[[Tensor], Tensor]  # column indices [C] -> [rows, C]; ignored by what is not packed


@dataclass(frozen=True, slots=True)
class ServedDigest:
    """The digest of what one rank serves of a tensor. Plain types: it crosses a process boundary."""

    name: str
    digest: str
    where: str = ""  # the part of the published tensor, for an additive digest that was not compared yet
    wanted: str = ""  # what the parts of all ranks must add up to


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one rank found."""

    digests: tuple[ServedDigest, ...]
    mismatched: tuple[str, ...]
    missing: tuple[str, ...]


class WeightTransaction:
    """Collects expectations while weights arrive; compares when they are in place."""

    def __init__(
        self, tensors: Sequence[TensorSpec], modules: Sequence[ServedModule], *, columns: int, seed: int
    ) -> None:
        """`columns`: how many columns of a packed layer to read back (0: all), chosen anew by `seed`."""
        self._specs = {spec.name: spec for spec in tensors}
        self._modules = tuple(modules)
        self._columns = columns
        self._seed = seed
        self._arrived: set[str] = set()
        self._corrupt: set[str] = set()
        self._expected: dict[str, str] = {}  # of what this rank serves, by part
        self._whole: dict[str, str] = {}  # of a whole tensor that the ranks' parts must add up to, by part
        self._consumers: dict[str, list[tuple[ServedModule, ServedPart]]] = {}
        for module in self._modules:
            for part in module.parts:
                self._consumers.setdefault(part.source, []).append((module, part))

    @property
    def announced(self) -> tuple[TensorSpec, ...]:
        """What must arrive."""
        return tuple(self._specs.values())

    def observe(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass weights on to the loader and note what they are.

        Raises WeightUpdateError for a name that was not announced or came twice, and for a wrong shape or dtype.
        """
        for name, tensor in weights:
            spec = self._specs.get(name)
            if spec is None:
                raise WeightUpdateError(f"tensor {name} arrived but is not in the manifest of this update")
            if name in self._arrived:
                raise WeightUpdateError(f"tensor {name} arrived twice in one update")
            if tuple(tensor.shape) != spec.shape or dtype_name(tensor.dtype) != spec.dtype:
                got = f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}"
                raise WeightUpdateError(f"tensor {name} arrived as {got}; announced as {spec.dtype} {spec.shape}")
            self._arrived.add(name)
            self._note(spec, tensor)
            yield name, tensor

    def _note(self, spec: TensorSpec, tensor: Tensor) -> None:
        """What this rank must serve of a tensor that has arrived."""
        consumers, kind = self._consumers.get(spec.name, []), digest_kind(spec.digest)
        later = [(m, p) for m, p in consumers if kind is DigestKind.ADDITIVE and self._adds_up(m, tensor)]
        for module, part in later:
            self._check_shape(module, part, part.slice_of(tensor))
            self._whole[part.name] = spec.digest
        if later and len(later) == len(consumers):
            return
        digest = tensor_digest(tensor, kind)
        if digest != spec.digest:
            self._corrupt.add(spec.name)
        for module, part in consumers:
            if part.name not in self._whole:
                self._expected[part.name] = self._expect(module, part, tensor, digest)

    def _adds_up(self, module: ServedModule, tensor: Tensor) -> bool:
        return module.dtype == tensor.dtype and not (self._columns and module.packed)

    def verify(self) -> RankReport:
        """Read back every served tensor. A part with no announced source, or never arrived, is `missing`."""
        digests: list[ServedDigest] = []
        mismatched = set(self._corrupt)
        for module in self._modules:
            local = module.read(self._column_index(module))
            for part in module.parts:
                found = self._served(part, local[part.local_rows])
                digests.append(found)
                if part.name in self._expected and found.digest != self._expected[part.name]:
                    mismatched.add(part.name)
        served = {part.name for module in self._modules for part in module.parts}
        noted = self._expected.keys() | self._whole.keys()
        missing = [name for name in self._specs if name not in self._arrived]
        missing += [name for name in served if name not in noted and name not in missing]
        # A tensor that nothing serves cannot be vouched for: an unknown layer type, or a name the engine ignores.
        unread = [name for name in self._arrived if name not in self._consumers and name not in served]
        return RankReport(tuple(digests), tuple(sorted({*mismatched, *unread})), tuple(sorted(missing)))

    def _served(self, part: ServedPart, local: Tensor) -> ServedDigest:
        spec = self._specs.get(part.source)
        if part.name not in self._whole:
            kind = digest_kind(spec.digest) if spec else None
            return ServedDigest(part.name, tensor_digest(local, kind))
        first_row, first_column = part.rows.start or 0, part.columns.start or 0
        digest = part_digest(local, first_row=first_row, first_column=first_column)
        where = (
            f"{first_row}+{local.shape[0] if local.ndim else 1},{first_column}+{local[0].numel() if local.ndim else 1}"
        )
        return ServedDigest(part.name, digest, where, self._whole[part.name])

    def _check_shape(self, module: ServedModule, part: ServedPart, wanted: Tensor) -> None:
        rows = range(module.shape[0])[part.local_rows]
        if (len(rows), *wanted.shape[1:]) != (wanted.shape[0], *module.shape[1:]):
            raise WeightUpdateError(
                f"tensor {part.name}: this rank serves {(len(rows), *module.shape[1:])}, "
                f"its slice of what arrived is {tuple(wanted.shape)}"
            )

    def _expect(self, module: ServedModule, part: ServedPart, tensor: Tensor, digest: str) -> str:
        wanted = part.slice_of(tensor)
        self._check_shape(module, part, wanted)
        sampled = self._columns and module.packed
        if not sampled and wanted.shape == tensor.shape and tensor.dtype == module.dtype:
            return digest
        if sampled:
            wanted = wanted[:, self._column_index(module)]
        return tensor_digest(wanted.to(module.dtype), digest_kind(digest))

    def _column_index(self, module: ServedModule) -> Tensor:
        """Columns to read back, ascending. [C] int64; the same for every call within one transaction."""
        if len(module.shape) < 2:
            return torch.arange(0)
        width = module.shape[1]
        if not module.packed or not self._columns or self._columns >= width:
            return torch.arange(width)
        generator = torch.Generator().manual_seed(self._seed)
        return torch.randperm(width, generator=generator)[: self._columns].sort().values
