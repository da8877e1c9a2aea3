"""The variance of a figure over pairs of people who judged the same thing, where people have habits.

A figure like agreement is a sum over duos: two people and the item both judged. Duos that share a person or an item
are not independent, all others are, so its variance is the sum of the products of those that share either (for duos:
Fafchamps and Gubert, 2007). Resampling people counts each duo's own chance twice: its intervals are too wide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from raylign.feedback.trust.intervals import Floats
from scipy.sparse import csr_array

Ints = NDArray[np.int64]

_MOST_DUOS = 200_000_000  # beyond that people's meetings are not counted apart, and intervals are wider
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Crossed:
    """Judgements: who said which of `kinds` things about which item, [J] each. One a person and item."""

    item: Ints
    person: Ints
    said: Ints
    kinds: int

    @staticmethod
    def of(item: Floats | Ints, person: Floats | Ints, said: Floats | Ints, kinds: int) -> Crossed:
        """With items and people numbered from 0, and without items that one person judged."""
        several = np.bincount(items := _numbered(item))[items] > 1
        return Crossed(_numbered(items[several]), _numbered(person[several]), said[several].astype(np.int64), kinds)

    @property
    def counts(self) -> Floats:
        """[items, kinds]: how many said what."""
        flat = np.bincount(self.item * self.kinds + self.said, minlength=self.kinds * (self.item.max(initial=-1) + 1))
        return flat.reshape(-1, self.kinds).astype(np.float64)

    @property
    def people(self) -> float:
        """So many people with equally many judgements say as much: (sum n)^2 / sum n^2."""
        each = np.bincount(self.person).astype(np.float64)
        return float(each.sum() ** 2 / (each**2).sum()) if len(each) else 0.0

    def variance(self, effect: Floats) -> float:
        """Of the sum over items of the sum over duos of `effect[said, said]` / (people of the item - 1).

        `effect` is [kinds, kinds], symmetric, and such that the sum is 0 on these judgements.
        """
        counts, people = self.counts, self.people
        weight = 1 / (counts.sum(1) - 1)
        others = (counts @ effect)[self.item, self.said] - effect[self.said, self.said]
        of_person_here = weight[self.item] * others
        of_person = np.bincount(self.person, of_person_here)
        of_item = weight * _duos(counts, effect)
        own = float((weight**2 * _duos(counts, effect**2)).sum())
        met = self._met(weight, effect, own)
        person, item = float((of_person**2).sum()) - met, float((of_item**2).sum())
        both = float((of_person_here**2).sum()) - own
        # The sum is 0 by the judgements themselves, which takes a share of every person's effect (worked out for
        # people who all met: their effects shrink by (R - 2) / (R - 1), over R - 1 free ones).
        grown = people * (people - 1) / (people - 2) ** 2 if people > 2 else 1.0
        person = max(grown * person - (grown - 1) * own, own)
        return max(person + max(item - both, 0.0), item)

    def _met(self, weight: Floats, effect: Floats, own: float) -> float:
        """Sum over all two people of their duos' sum, squared: counted for both of them otherwise."""
        size = self.counts.sum(1)
        if float((size**2).sum()) > _MOST_DUOS:
            return own
        shape = (int(self.person.max()) + 1, len(weight))
        said = [
            csr_array((np.ones(int(here.sum())), (self.person[here], self.item[here])), shape=shape)
            for here in (self.said == kind for kind in range(self.kinds))
        ]
        answers = [sum((effect[k, j] * one for j, one in enumerate(said)), csr_array(shape)) for k in range(self.kinds)]
        total = 0.0
        for rows in _chunks(np.bincount(self.person, size[self.item]).astype(np.float64)):
            met = csr_array((rows.stop - rows.start, shape[0]))
            for one, answer in zip(said, answers, strict=True):
                met = met + one[rows].multiply(weight).tocsr() @ answer.T
            total += float((met.data**2).sum()) - float((met.diagonal(rows.start) ** 2).sum())
        return total / 2


def _duos(counts: Floats, effect: Floats) -> Floats:
    """[items]: `effect` summed over the duos of an item."""
    return ((counts @ effect * counts).sum(1) - counts @ np.diag(effect)) / 2


def _numbered(names: Floats | Ints) -> Ints:
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _chunks(sizes: Floats) -> Iterator[slice]:
    """Runs of people whose meetings fit in memory together."""
    start, held = 0, 0.0
    for end, size in enumerate(sizes):
        if held + size > _CHUNK and end > start:
            yield slice(start, end)
            start, held = end, 0.0
        held += size
    if start < len(sizes):
        yield slice(start, len(sizes))
