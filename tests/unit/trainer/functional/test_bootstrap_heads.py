"""Heads of an ensemble against slow truths: gradients, people drawn whole, and the spread that theory says."""

from __future__ import annotations

import pytest
import torch
from raylign.trainer.functional.bootstrap_heads import anchors, fit_heads, head_scores, person_weights
from torch.nn import functional as F

PEOPLE, EACH, WIDTH = 60, 20, 6


def planted(seed: int = 0) -> tuple[torch.Tensor, list[str | None]]:
    """Differences of pairs in the first four of six directions, chosen by people who do not quite agree."""
    generator = torch.Generator().manual_seed(seed)
    taste = torch.tensor([1.0, -0.5, 0.3, 0.0, 0.0, 0.0], dtype=torch.float64)
    rows, people = [], []
    for person in range(PEOPLE):
        own = taste + 0.5 * torch.randn(WIDTH, generator=generator, dtype=torch.float64)
        shown = torch.randn(EACH, WIDTH, generator=generator, dtype=torch.float64)
        shown[:, 4:] = 0
        liked = torch.rand(EACH, generator=generator, dtype=torch.float64) < torch.sigmoid(shown @ own)
        rows.append(torch.where(liked[:, None], shown, -shown))
        people += [f"p{person}"] * EACH
    return torch.cat(rows), people


def test_each_head_is_at_its_minimum():
    rows, people = planted()
    weights = person_weights(people, 3, seed=1)
    anchored = anchors(torch.ones(WIDTH), 3, scale=0.7, seed=2)
    heads = fit_heads(rows, weights, anchored, scale=0.7).requires_grad_()
    loss = (weights * F.softplus(-(heads @ rows.T))).sum() + (heads - anchored).square().sum() / (2 * 0.7**2)
    (gradient,) = torch.autograd.grad(loss, heads)
    assert gradient.abs().max() < 1e-5


def test_people_are_drawn_whole_and_with_replacement():
    people = ["a", "b", None, "a", None, "c"]
    weights = person_weights(people, 4000, seed=3)
    assert torch.equal(weights[:, 0], weights[:, 3]) and not torch.equal(weights[:, 2], weights[:, 4])
    each = weights[:, [0, 1, 2, 4, 5]]
    assert torch.equal(each.sum(1), torch.full((4000,), 5.0, dtype=torch.float64))  # as many as there are
    assert each.mean(0).numpy() == pytest.approx(1, abs=0.06) and each.var(0).numpy() == pytest.approx(0.8, abs=0.08)


def test_the_spread_is_that_of_asking_other_people():
    """Against the cluster-robust covariance (people as clusters), which takes no draw: Liang and Zeger 1986."""
    rows, people = planted()
    rows = rows[:, :4]
    wide = 1e3  # the anchors hardly hold
    flat = torch.zeros(150, 4, dtype=torch.float64)
    heads = fit_heads(rows, person_weights(people, 150, seed=5), flat, scale=wide)
    best = fit_heads(rows, torch.ones(1, len(people)), flat[:1], scale=wide)[0]
    wrong = torch.sigmoid(-(rows @ best))
    bread = torch.linalg.inv((rows * (wrong * (1 - wrong))[:, None]).T @ rows)
    by_person = (rows * wrong[:, None]).reshape(PEOPLE, EACH, 4).sum(1)
    truth = (bread @ (by_person.T @ by_person) @ bread).diagonal().sqrt()
    assert (heads.std(0) / truth).numpy() == pytest.approx(1, abs=0.25)
    alone = fit_heads(rows, person_weights([None] * len(people), 150, seed=5), flat, scale=wide)
    assert (alone.std(0) < 0.9 * heads.std(0)).all()  # as if every judgement were somebody else's: too sure


def test_where_nobody_was_asked_the_spread_is_the_anchors():
    rows, people = planted()
    anchored = anchors(torch.zeros(WIDTH), 200, scale=0.5, seed=7)
    heads = fit_heads(rows, person_weights(people, 200, seed=8), anchored, scale=0.5)
    assert torch.allclose(heads[:, 4:], anchored[:, 4:], atol=1e-6)
    seen, unseen = torch.eye(WIDTH, dtype=torch.float64)[[0, 5]]
    mean, spread = head_scores(torch.stack([seen, unseen]), heads)
    assert spread[1] > 2 * spread[0] and mean[0] > 0.5
    held = fit_heads(rows, person_weights(people, 200, seed=8), torch.zeros(200, WIDTH), scale=0.5)
    assert head_scores(unseen[None], held)[1] < 1e-9  # without anchors of their own all heads agree there
