"""What a unit of a batch costs a forward pass, where sequences that begin with the same prompt compute it once.

A *unit* is what may not be split over micro-batches: a sequence, or a pair. Units of one prompt are a *family*.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

Sequences = Sequence[tuple[Sequence[int], Sequence[bool]]]
"""Token ids of each sequence, and which of them are the answer's."""


class UnitWork(NamedTuple):
    """The tokens that a unit has computed."""

    family: Hashable  # equal for units that share their first tokens
    shared: int  # computed once for all units of the family in one micro-batch
    own: int

    @property
    def tokens(self) -> int:
        """Of the unit alone."""
        return self.shared + self.own


def work_of(sequences: Sequences) -> UnitWork:
    """Of a unit of one or more sequences. What they share is the prompt, as far as it is the same in all of them."""
    prompts = [ids[: mask.index(True) if True in mask else len(ids)] for ids, mask in sequences]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    shared = tuple(prompts[0]) if len(prompts) == 1 else tuple(column[0] for column in alike)
    own = sum(len(ids) for ids, _ in sequences) - len(sequences) * len(shared)
    return UnitWork(shared, len(shared), own)


def tokens_together(units: Iterable[UnitWork]) -> int:
    """What units in one micro-batch cost: each family's prompt once."""
    shared: dict[Hashable, int] = {}
    own = 0
    for unit in units:
        shared[unit.family] = unit.shared
        own += unit.own
    return own + sum(shared.values())
