"""An ensemble of linear reward heads on frozen features, drawn over people: how far a score depends on who was asked.

A head's reward of an answer is its product with the answer's features. Each head is fitted to a sample of the people,
drawn with replacement (the cluster bootstrap: all judgements of a person come or stay away together), and is held to an
anchor of its own around the trained head. The bootstrap makes heads differ by whom was asked, the anchors where nobody
was: without them all heads stay with the trained one in directions that no pair shows (Osband et al. 2018,
arXiv:1806.03335; Pearce et al. 2020, arXiv:1810.05546).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_MOST_STEPS = 50
_HALVINGS = 30
_ENTRIES = 1 << 26
"""Of the weighted features of several heads at once, float64: half a gigabyte."""


def person_weights(people: Sequence[str | None], num_heads: int, *, seed: int) -> Tensor:
    """How often each pair counts for each head, `[K, P]` float64: as often as its person was drawn.

    people: of each pair; None is a person of its own. As many are drawn for a head as there are.
    """
    named = [person if person is not None else row for row, person in enumerate(people)]
    order = {person: place for place, person in enumerate(dict.fromkeys(named))}
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(order), (num_heads, len(order)), generator=generator)
    times = torch.zeros(num_heads, len(order), dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return times[:, [order[person] for person in named]]


def anchors(trained: Tensor, num_heads: int, *, scale: float, seed: int) -> Tensor:
    """One anchor a head, `[K, H]` float64: N(trained, scale^2), trained `[H]`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_heads, trained.numel(), generator=generator, dtype=torch.float64)
    return trained.double() + scale * noise


def fit_heads(differences: Tensor, weights: Tensor, anchored: Tensor, *, scale: float) -> Tensor:
    """The minimum of each head's loss, `[K, H]` float64, by Newton's method.

    differences `[P, H]`: features of the chosen answer minus those of the rejected; weights `[K, P]`; anchored
    `[K, H]`. Loss of head k: sum_p weights[k, p] softplus(-differences[p] w) + |w - anchored[k]|^2 / (2 scale^2). It is
    strictly convex, so there is one minimum. Raises ValueError when it is not reached.
    """
    rows = differences.double()
    at_once = max(1, _ENTRIES // max(1, rows.numel()))
    parts = zip(weights.double().split(at_once), anchored.double().split(at_once), strict=True)
    return torch.cat([_fit(rows, weight, anchor, scale**-2) for weight, anchor in parts])


def head_scores(features: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the heads, `[S]` each: features `[S, H]`, heads `[K, H]`, K >= 2."""
    scores = features @ heads.T
    return scores.mean(1), scores.std(1)


def _fit(rows: Tensor, weight: Tensor, anchor: Tensor, strength: float) -> Tensor:
    """Some heads side by side: rows `[P, H]`, weight `[k, P]`, anchor `[k, H]`."""

    def losses(heads: Tensor) -> Tensor:
        held = strength / 2 * (heads - anchor).square().sum(1)
        return (weight * F.softplus(-(heads @ rows.T))).sum(1) + held

    heads = anchor.clone()
    for _ in range(_MOST_STEPS):
        wrong = torch.sigmoid(-(heads @ rows.T))  # [k, P]
        gradient = strength * (heads - anchor) - (weight * wrong) @ rows
        if (gradient.abs().amax(1) <= 1e-9 * (1 + weight.sum(1))).all():
            return heads
        curvature = (rows.T * (weight * wrong * (1 - wrong))[:, None]) @ rows  # [k, H, H]
        curvature.diagonal(dim1=1, dim2=2).add_(strength)
        step = torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(curvature))[..., 0]
        heads = heads - _length(heads, step, losses)[:, None] * step
    raise ValueError(f"the heads of the ensemble have not converged in {_MOST_STEPS} steps")


def _length(heads: Tensor, step: Tensor, losses: Callable[[Tensor], Tensor]) -> Tensor:
    """Of each head's step, the first of 1, 1/2, 1/4, ... that does not raise its loss by more than rounding, `[k]`."""
    before, length = losses(heads), heads.new_ones(len(heads))
    for _ in range(_HALVINGS):
        worse = losses(heads - length[:, None] * step) > before + 1e-9 * before.abs()
        if not worse.any():
            break
        length = torch.where(worse, length / 2, length)
    return length
