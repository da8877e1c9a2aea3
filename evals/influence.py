"""What one row did to others, from a trace index: neighbours of a gradient, and help or harm to a held-out row. Pure.

A step with learning rate r and gradient g changes a loss L by about -r g . dL, so a row's effect on a held-out loss
over the run is the sum over its draws of that product (TracIn; Pruthi et al. 2020, arXiv:2002.08484, eq. 1). Adam's
scaling of the weights is left out, as is momentum: an effect is a sign and an order, not a number of nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from raylign.evals.trace_index import TraceIndex
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A row whose gradient points along another's, or against it."""

    row: int
    cosine: float


@dataclass(frozen=True, slots=True)
class Effect:
    """What training on a row did to a held-out loss: above 0 it helped. Without a unit."""

    row: int
    effect: float
    cosine: float  # of the row's gradients with the held-out one, mean over its draws


def neighbours(index: TraceIndex, row: int, count: int) -> tuple[list[Neighbour], list[Neighbour]]:
    """Up to `count` rows that pull the same way as `row`, most alike first, and as many that pull the opposite way.

    Cosines are means over the draws of both rows. They are within about 2 / sqrt(sketch size) of the true ones; what is
    nearer to 0 than that is left out.
    """
    rows, directions = mean_directions(index)
    cosines = directions @ directions[int((rows == row).nonzero()[0, 0])]
    noise = 2 * index.header.sketch_size**-0.5
    order = cosines.argsort(descending=True).tolist()
    found = [Neighbour(int(rows[i]), float(cosines[i])) for i in order if int(rows[i]) != row]
    same = [one for one in found if one.cosine > noise][:count]
    opposite = [one for one in reversed(found) if one.cosine < -noise][:count]
    return same, opposite


def effects(index: TraceIndex, target: Tensor) -> list[Effect]:
    """Every row's effect on the loss whose gradient's sketch is `target [size]`, most helpful first."""
    along = index.sketch.float() @ target
    size = float(target.norm()) or 1.0
    parts = (index.lr * index.norm * along.double()).tolist()
    total: dict[int, list[float]] = {}
    cosines: dict[int, list[float]] = {}
    for row, part, cosine in zip(index.row.tolist(), parts, (along / size).tolist(), strict=True):
        total.setdefault(row, []).append(part)
        cosines.setdefault(row, []).append(cosine)
    found = [Effect(row, sum(total[row]), sum(cosines[row]) / len(cosines[row])) for row in total]
    return sorted(found, key=lambda one: (-one.effect, one.row))


def strongest(effects: Sequence[Effect], count: int) -> tuple[list[Effect], list[Effect]]:
    """Up to `count` rows that helped, most helpful first, and as many that harmed, most harmful first."""
    helpful = [one for one in effects if one.effect > 0]
    harmful = [one for one in reversed(effects) if one.effect < 0]
    return helpful[:count], harmful[:count]


def mean_directions(index: TraceIndex) -> tuple[Tensor, Tensor]:
    """Rows `[R]` that were drawn, and the direction of each one's mean gradient `[R, size]`, at length 1."""
    rows, place = index.row.unique(return_inverse=True)
    total = torch.zeros(len(rows), index.sketch.shape[1]).index_add_(0, place, index.sketch.float())
    return rows, torch.nn.functional.normalize(total, dim=1)


def movement_along(index: TraceIndex, draw: int) -> float:
    """Cosine of the run's whole change of the weights with the step down this draw's gradient, -1 to 1."""
    size = float(index.movement.norm())
    return float(-(index.sketch[draw].float() @ index.movement)) / size if size > 0 else 0.0
