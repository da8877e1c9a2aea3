"""Which model do people prefer, and would they still if all answers were equally long? Bradley and Terry's model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
import polars as pl
from numpy.typing import NDArray
from raylign.feedback.trust.intervals import CONFIDENCE, Estimate, z_of
from raylign.feedback.trust.logistic import Fit, fit_logistic

_RIDGE = 0.05  # a prior of about 4.5 nats around 0: moves nothing that has twenty judgements
Floats = NDArray[np.float64]


class Control(Enum):
    """What is held equal while models are compared."""

    LENGTH = "length"  # (length_a - length_b) / (length_a + length_b), divided by its standard deviation
    POSITION = "position"  # which answer stood on the left


@dataclass(frozen=True, slots=True)
class RankedModel:
    """One model. `strength` is in nats around the mean of all models of its field."""

    model: str
    judgements: int
    strength: Estimate
    win_share: Estimate  # chance to be picked over a model of mean strength
    rank_best: int  # no fewer models than this - 1 are surely better
    rank_worst: int  # no fewer models than this are not surely worse


@dataclass(frozen=True, slots=True)
class Effect:
    """What a control is worth: nats for one standard deviation (length) or for standing left (position)."""

    control: Control
    nats: Estimate


@dataclass(frozen=True, slots=True)
class Ranking:
    """Models, best first. `left_out` were never compared, even indirectly, with those ranked."""

    models: tuple[RankedModel, ...]
    effects: tuple[Effect, ...]
    judgements: int
    clusters: int  # people whose choices count as one block; 0: judgements were taken as independent
    left_out: tuple[str, ...]


def rank_models(judged: pl.DataFrame, controls: tuple[Control, ...] = ()) -> Ranking | None:
    """Rank the models of `judged` (JUDGEMENT_SCHEMA). A tie is half a win for each. None: no two models compared.

    P(a over b) = sigmoid(s_a - s_b + sum over controls of effect * x). A control's x changes sign when the sides
    swap, so the order of logging changes nothing. Rows that miss a control's column count with x = 0.
    """
    battles = judged.filter(
        pl.col("model_a").is_not_null(), pl.col("model_b").is_not_null(), pl.col("model_a") != pl.col("model_b")
    )
    field, left_out = _largest_field(battles)
    if not field:
        return None
    battles = battles.filter(pl.col("model_a").is_in(field))
    number = {model: i for i, model in enumerate(field)}
    a = battles["model_a"].replace_strict(number, return_dtype=pl.Int64).to_numpy()
    b = battles["model_b"].replace_strict(number, return_dtype=pl.Int64).to_numpy()
    design = np.zeros((len(battles), len(field) + len(controls)))
    rows = np.arange(len(battles))
    design[rows, a], design[rows, b] = 1.0, -1.0
    for k, control in enumerate(controls):
        design[:, len(field) + k] = _covariate(battles, control)
    clusters = battles["rater"].rank("dense").cast(pl.Int64).to_numpy()
    fit = fit_logistic(design, battles["score_a"].to_numpy(), clusters, ridge=_RIDGE)
    counts = np.bincount(np.concatenate([a, b]), minlength=len(field))
    effects = [
        Effect(control, _interval(fit.coefficients[k], fit.covariance[k, k], len(battles)))
        for k, control in enumerate(controls, start=len(field))
    ]
    return Ranking(_table(field, counts, fit), tuple(effects), len(battles), fit.clusters, left_out)


def length_feature() -> pl.Expr:
    """The length control's x before it is scaled, in (-1, 1): positive where side a is longer."""
    a, b = pl.col("length_a"), pl.col("length_b")
    return ((a - b) / (a + b)).fill_nan(0.0)


def _covariate(battles: pl.DataFrame, control: Control) -> Floats:
    if control is Control.LENGTH:
        values = battles.select(length_feature()).to_series().to_numpy()
        scale = float(np.sqrt((values * values).mean()))  # around 0, not the mean: swapping sides must flip the sign
        return values / scale if scale else values
    left = pl.when("a_left").then(0.5).otherwise(-0.5)
    return battles.select(pl.when(pl.col("a_left").is_null()).then(0.0).otherwise(left)).to_series().to_numpy()


def _largest_field(battles: pl.DataFrame) -> tuple[list[str], tuple[str, ...]]:
    """The largest set of models connected by comparisons (most judgements; then by name), and the rest."""
    pairs = battles.group_by("model_a", "model_b").agg(n=pl.len()).sort("model_a", "model_b").rows()
    home = {model: model for a, b, _ in pairs for model in (a, b)}

    def root(model: str) -> str:
        while home[model] != model:
            model = home[model]
        return model

    for a, b, _ in pairs:
        home[max(root(a), root(b))] = min(root(a), root(b))
    size: dict[str, int] = {}
    for a, _, n in pairs:
        size[root(a)] = size.get(root(a), 0) + n
    if not size:
        return [], ()
    largest = min(size, key=lambda r: (-size[r], r))
    field = sorted(model for model in home if root(model) == largest)
    return field, tuple(sorted(home.keys() - set(field)))


def _table(field: list[str], counts: NDArray[np.int64], fit: Fit) -> tuple[RankedModel, ...]:
    size = len(field)
    centre = np.eye(size) - 1 / size  # strengths are differences: only those from the mean are known
    strength = centre @ fit.coefficients[:size]
    covariance = centre @ fit.covariance[:size, :size] @ centre
    variance = np.diag(covariance)
    gap = strength[:, None] - strength[None, :]
    error = np.sqrt(np.maximum(0.0, variance[:, None] + variance[None, :] - 2 * covariance))
    surely_better = gap > z_of(CONFIDENCE) * error + 1e-12  # [i, j]: i surely beats j
    models = []
    for i, name in enumerate(field):
        nats = _interval(strength[i], variance[i], int(counts[i]))
        share = Estimate(_odds(nats.value), _odds(nats.low), _odds(nats.high), nats.count)
        best, worst = 1 + int(surely_better[:, i].sum()), size - int(surely_better[i].sum())
        models.append(RankedModel(name, int(counts[i]), nats, share, best, worst))
    return tuple(sorted(models, key=lambda m: (-m.strength.value, m.model)))


def _odds(nats: float) -> float:
    return 1 / (1 + math.exp(-nats))


def _interval(value: float, variance: float, count: int) -> Estimate:
    half = z_of(CONFIDENCE) * float(np.sqrt(max(0.0, variance)))
    return Estimate(float(value), float(value) - half, float(value) + half, count)
