"""Weighted logistic regression with cluster-robust errors, by Newton's method: the maths under the model ranking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_STEPS = 100
_TOLERANCE = 1e-10
_FEW_CLUSTERS = 20


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients [P] and their covariance [P, P]. `clusters` is 0 where rows were taken as independent."""

    coefficients: Floats
    covariance: Floats
    clusters: int


def fit_logistic(design: Floats, outcome: Floats, clusters: Ints, *, ridge: float) -> Fit:
    """P(outcome) = sigmoid(design @ coefficients), no intercept. design [N, P], outcome [N] in [0, 1], clusters [N].

    `ridge` is the precision of a normal prior on each coefficient: it keeps a model that won every game finite. The
    covariance is the sandwich estimator over clusters (Liang and Zeger, 1986): one person's choices are alike, and
    errors that ignore it are too small. With fewer than 20 clusters that estimate is itself too small, so rows count
    alone. A step that does not improve the likelihood is halved.
    """
    num_rows, num_columns = design.shape
    beta = np.zeros(num_columns)
    value = _objective(design, outcome, beta, ridge)
    for _ in range(_MOST_STEPS):
        p = _sigmoid(design @ beta)
        gradient = design.T @ (outcome - p) - ridge * beta
        step = np.linalg.solve(_information(design, p, ridge), gradient)
        scale = 1.0
        while (better := _objective(design, outcome, beta + scale * step, ridge)) < value - 1e-9 and scale > 1e-4:
            scale /= 2
        beta, value = beta + scale * step, better
        if float(np.abs(scale * step).max(initial=0.0)) < _TOLERANCE:
            break
    p = _sigmoid(design @ beta)
    bread = np.linalg.inv(_information(design, p, ridge))
    scores = design * (outcome - p)[:, None]
    names, index = np.unique(clusters, return_inverse=True)
    used = len(names) if len(names) >= _FEW_CLUSTERS else 0
    if used:
        scores = np.column_stack([np.bincount(index, weights=column, minlength=used) for column in scores.T])
    groups = used or num_rows
    meat = scores.T @ scores * (groups / max(1, groups - 1))
    return Fit(beta, bread @ meat @ bread, used)


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(x, -50, 50)))


def _objective(design: Floats, outcome: Floats, beta: Floats, ridge: float) -> float:
    logits = design @ beta
    return float((outcome * logits - np.logaddexp(0, logits)).sum() - 0.5 * ridge * (beta @ beta))


def _information(design: Floats, p: Floats, ridge: float) -> Floats:
    weighted = design * (p * (1 - p))[:, None]
    return design.T @ weighted + ridge * np.eye(design.shape[1])
