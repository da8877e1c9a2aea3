"""A logistic head over a model's hidden states: tells turns that correct an answer, learned from labelled ones.

Pure: states come in as rows. The threshold is the lowest at which cross-validated precision is still as wanted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from raylign.conf.errors import DataError
from scipy.optimize import minimize

Floats = NDArray[np.float64]

FOLDS = 7
PRECISION = 0.98
"""Wanted of the folds. Turns of one author are alike, so on others' turns it is lower."""
MIN_TURNS = 100
"""Labelled turns that a head is fitted to, at least."""
_MIN_CALLED = 10  # of the folds' turns: with fewer, a precision is luck
_DECAY = 3e-4  # of squared weights, in the mean loss of a turn


@dataclass(frozen=True, slots=True)
class Head:
    """`score(states) > threshold` calls a turn a correction."""

    mean: Floats  # [width]
    spread: Floats  # [width]
    weights: Floats  # [width]
    bias: float
    threshold: float

    def calls(self, states: Floats) -> list[bool]:
        """States [turns, width] -> whether each turn corrects."""
        return [bool(score >= self.threshold) for score in self.scores(states)]

    def scores(self, states: Floats) -> Floats:
        """[turns, width] -> [turns], in nats."""
        return _scaled(states, self.mean, self.spread) @ self.weights + self.bias


def fit_head(states: Floats, corrects: Sequence[bool], texts: Sequence[str]) -> Head:
    """States [turns, width] of labelled turns -> a head. `texts` decide the folds: equal ones are in one.

    Raises DataError when there are too few turns, or when none can be told at the wanted precision.
    """
    labels = np.asarray(corrects, dtype=np.float64)
    if len(labels) < MIN_TURNS or min(labels.sum(), (1 - labels).sum()) < FOLDS:
        raise DataError(
            f"--train: {len(labels)} labelled turns, {int(labels.sum())} of them corrections; a head needs at least "
            f"{MIN_TURNS}, and {FOLDS} of either kind."
        )
    fold = np.array([int(hashlib.blake2b(text.encode(), digest_size=4).hexdigest(), 16) % FOLDS for text in texts])
    held_out = np.zeros(len(labels))
    for one in range(FOLDS):
        inside = fold == one
        if inside.any() and not inside.all():
            held_out[inside] = _fitted(states[~inside], labels[~inside], 0.0).scores(states[inside])
    threshold = _threshold(held_out, labels)
    return _fitted(states, labels, threshold)


def _threshold(scores: Floats, labels: Floats) -> float:
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(labels[order])
    precise = np.flatnonzero(right / np.arange(1, len(order) + 1) >= PRECISION)
    if not len(precise) or precise[-1] + 1 < _MIN_CALLED:
        raise DataError(
            f"--train: at no threshold are {PRECISION:.0%} of the turns that are called corrections some; take "
            "another model or more labelled turns."
        )
    return float(scores[order[precise[-1]]])


def _fitted(states: Floats, labels: Floats, threshold: float) -> Head:
    mean, spread = states.mean(0), states.std(0) + 1e-6
    scaled = _scaled(states, mean, spread)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights, bias = parameters[:-1], parameters[-1]
        logits = scaled @ weights + bias
        wrong = 1 / (1 + np.exp(-logits)) - labels
        value = np.mean(np.logaddexp(0, logits) - labels * logits) + _DECAY * weights @ weights
        slope = np.append(scaled.T @ wrong / len(labels) + 2 * _DECAY * weights, wrong.mean())
        return float(value), slope

    found = minimize(loss, np.zeros(states.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return Head(mean, spread, found[:-1], float(found[-1]), threshold)


def _scaled(states: Floats, mean: Floats, spread: Floats) -> Floats:
    return (states - mean) / spread / np.sqrt(states.shape[1])
