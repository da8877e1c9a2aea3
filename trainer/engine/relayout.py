"""A saved optimizer state read by ranks that are cut otherwise: another rank count, or another ZeRO stage.

Every rank's file says which elements of which parameter its tensors hold (`Piece`), so a rank of any layout finds its
own elements in the files of any other. Masters and moments are copied, never computed: the bits are the saved ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from raylign.trainer.engine.base import EngineStateError
from safetensors import safe_open
from torch import Tensor

MASTER = "master"


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive elements of one parameter, and where a rank's masters hold them. Both are counted flat."""

    name: str  # of the parameter, Hugging Face's
    first: int
    count: int
    master: int  # which of the rank's master tensors
    offset: int


@dataclass(frozen=True, slots=True)
class Cut:
    """How one rank holds the trained parameters."""

    shapes: Mapping[str, Sequence[int]]  # whole ones, of every trained parameter
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class SavedRank:
    """One rank's file, open."""

    file: safe_open
    cut: Cut
    entries: frozenset[str]

    def keys_of(self, master: int) -> frozenset[str]:
        """What is kept of a master: itself, its moments, its step."""
        prefix = f"{master}."
        return frozenset(entry.removeprefix(prefix) for entry in self.entries if entry.startswith(prefix))

    def elements(self, key: str, piece: Piece, first: int, count: int) -> Tensor:
        """Elements `first .. first + count` of the parameter of `piece`, flat."""
        start = piece.offset + first - piece.first
        entry = f"{piece.master}.{key}"
        part = self.file.get_slice(entry)
        if len(part.get_shape()) == 1:
            return part[start : start + count]
        return self.file.get_tensor(entry).reshape(-1)[start : start + count]

    def number(self, key: str, piece: Piece) -> float:
        """A single number beside a master."""
        return float(self.file.get_tensor(f"{piece.master}.{key}"))

    def is_number(self, key: str, piece: Piece) -> bool:
        """True for an entry without dimensions."""
        return not self.file.get_slice(f"{piece.master}.{key}").get_shape()


def whole_cut(named: Iterable[tuple[str, Tensor]]) -> Cut:
    """Of a rank with one whole master a parameter, in their order."""
    listed = [(name, tuple(p.shape), p.numel()) for name, p in named]
    return Cut(
        {name: shape for name, shape, _ in listed},
        tuple(Piece(name, 0, count, i, 0) for i, (name, _, count) in enumerate(listed)),
    )


def refuse_other_parameters(saved: Cut, wanted: Cut, where: str) -> None:
    """Raises EngineStateError, naming one, when the two are not of the same trained parameters."""
    for name in sorted(set(saved.shapes) | set(wanted.shapes)):
        before, now = saved.shapes.get(name), wanted.shapes.get(name)
        if before is None:
            raise EngineStateError(f"{where} has no state of {name}, which this run trains; was it another model?")
        if now is None:
            raise EngineStateError(f"{where} has state of {name}, which this run does not train; was it another model?")
        if list(before) != list(now):
            raise EngineStateError(
                f"{where} has {name} as {list(before)}, this run's model has {list(now)}; was it another model?"
            )


def read_pieces(
    saved: Sequence[SavedRank], wanted: Cut, masters: Sequence[Tensor], where: str
) -> list[dict[str, Tensor | float]]:
    """Copy the saved masters into `masters`; of each, its optimizer's state: flat moments, numbers.

    Raises EngineStateError, naming the parameter, when an element of it is in no file, or its parts differ in what is
    kept of them (a parameter that had no gradient while its neighbours had).
    """
    held: dict[str, list[tuple[SavedRank, Piece]]] = {}
    for rank in saved:
        for piece in rank.cut.pieces:
            held.setdefault(piece.name, []).append((rank, piece))
    states: list[dict[str, Tensor | float]] = [{} for _ in masters]
    numbers: dict[str, float] = {}
    kept: frozenset[str] | None = None
    for piece in wanted.pieces:
        for rank, source, first, count in _sources(held.get(piece.name, ()), piece, where):
            keys = rank.keys_of(source.master)
            if keys != (kept := keys if kept is None else kept):
                raise EngineStateError(
                    f"{where} keeps {sorted(keys)} of {piece.name} and {sorted(kept)} of the parameters before it: one "
                    "had no gradient; resume with the same zero_stage and num_ranks"
                )
            target = piece.offset + first - piece.first
            for key in keys:
                if rank.is_number(key, source):
                    _note(numbers, key, rank.number(key, source), piece.name, where)
                    continue
                whole = masters[piece.master] if key == MASTER else _moment(states[piece.master], key, masters, piece)
                whole.data.view(-1)[target : target + count].copy_(rank.elements(key, source, first, count))
    return [{**state, **numbers} if state else {} for state in states]


def _moment(state: dict[str, Tensor | float], key: str, masters: Sequence[Tensor], piece: Piece) -> Tensor:
    found = state.setdefault(key, torch.zeros_like(masters[piece.master].data))
    assert isinstance(found, Tensor)
    return found


def _note(numbers: dict[str, float], key: str, value: float, name: str, where: str) -> None:
    if numbers.setdefault(key, value) != value:
        raise EngineStateError(
            f"{where} has {key}={value:g} for {name} and {numbers[key]:g} for the parameters before it; resume with "
            "the same zero_stage and num_ranks"
        )


def _sources(
    held: Sequence[tuple[SavedRank, Piece]], wanted: Piece, where: str
) -> Iterator[tuple[SavedRank, Piece, int, int]]:
    """Where the elements of `wanted` are, from its first to its last: rank, its piece, first element, how many."""
    at, end = wanted.first, wanted.first + wanted.count
    while at < end:
        found = next(((r, p) for r, p in held if p.first <= at < p.first + p.count), None)
        if found is None:
            raise EngineStateError(f"{where} has no file with element {at} of {wanted.name}; is a rank's file missing?")
        rank, piece = found
        count = min(end, piece.first + piece.count) - at
        yield rank, piece, at, count
        at += count
