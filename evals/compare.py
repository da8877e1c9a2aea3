"""Several models on the same prompts: whose answers score higher, and would they if all were equally long. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from raylign.conf.errors import DataError
from raylign.evals.results import PromptScore, SuiteResult
from raylign.evals.statistics import Figure, Floats, Range, difference, figure, holm, mcnemar
from raylign.feedback.trust.intervals import z_of
from raylign.feedback.trust.logistic import fit_logistic
from scipy.special import expit
from scipy.stats import wilcoxon

_RIDGE = 0.05
"""Precision of a prior around "equally good": keeps a model finite that won every prompt."""
_ONE_SIDED = 0.1
"""Below this share of prompts on which its answer is not the longer one, equal length is extrapolated."""


@dataclass(frozen=True, slots=True)
class PairShare:
    """How often `first`'s answer is preferred to `second`'s: one prompt, one vote; a tie is half a vote."""

    first: int
    second: int
    share: Figure
    p: float  # that both are preferred equally often; corrected for the number of pairs (Holm)
    equal_length: Figure | None  # the share if both answers were equally long; None where no answers differ in length
    extrapolated: bool  # one model's answers are nearly always the longer ones: equal length was hardly seen
    decided: bool  # one half lies outside the interval, and p is below what the confidence leaves


@dataclass(frozen=True, slots=True)
class Standing:
    """One model over all prompts."""

    name: str
    score: Figure | None
    failed: int  # prompts without a grade
    words: float  # mean words of an answer


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt with every model's answers, in the order of the models."""

    prompt: str
    rows: tuple[PromptScore, ...]

    @property
    def best(self) -> frozenset[int]:
        """The models with the highest score; none where all are equal or one has no score."""
        values = [row.value for row in self.rows]
        known = [value for value in values if value is not None]
        if len(known) < len(values) or len(set(known)) == 1:
            return frozenset()
        return frozenset(i for i, value in enumerate(values) if value == max(known))


@dataclass(frozen=True, slots=True)
class Comparison:
    """All models, all pairs, all prompts."""

    suite: str
    about: str
    unit: str
    models: tuple[Standing, ...]
    pairs: tuple[PairShare, ...]
    asked: tuple[Asked, ...]
    confidence: float

    def share(self, first: int, second: int) -> Figure:
        """Of prompts on which model `first` is preferred to model `second`."""
        pair = self.pair(first, second)
        return pair.share if pair.first == first else _turned(pair.share)

    def pair(self, first: int, second: int) -> PairShare:
        """Of two models, in either order."""
        return next(pair for pair in self.pairs if {pair.first, pair.second} == {first, second})


def compare(results: Sequence[SuiteResult], names: Sequence[str], *, confidence: float = 0.95) -> Comparison:
    """`results`: one a model, of the same suite. Raises DataError when they were asked different things.

    A pair counts the prompts on which both have a grade.
    """
    if len({result.suite_digest for result in results}) > 1:
        raise DataError(
            f"suite {results[0].suite}: the results are of different suites (rows, grading or sampling differ); "
            "evaluate all again."
        )
    rows = [{row.prompt_id: row for row in result.rows} for result in results]
    found = [_pair(i, j, rows[i], rows[j], confidence) for i, j in combinations(range(len(results)), 2)]
    corrected = holm([p for _, p in found])
    pairs = [
        replace(pair, p=p, decided=_excludes_half(pair.share) and p < 1 - confidence)
        for (pair, _), p in zip(found, corrected, strict=True)
    ]
    asked = [Asked(row.prompt, tuple(by_id[row.prompt_id] for by_id in rows)) for row in results[0].rows]
    models = [
        Standing(
            name=name,
            score=figure(result.scores(), result.possible, confidence=confidence),
            failed=result.failed,
            words=float(np.mean([_words(row) for row in result.rows])) if result.rows else 0.0,
        )
        for name, result in zip(names, results, strict=True)
    ]
    first = results[0]
    return Comparison(first.suite, first.about, first.unit, tuple(models), tuple(pairs), tuple(asked), confidence)


def votes(first: PromptScore, second: PromptScore) -> float | None:
    """Share of pairs of their answers in which `first`'s scores higher, ties half; None without all grades."""
    if first.value is None or second.value is None:
        return None
    a, b = np.array(first.scores, dtype=np.float64), np.array(second.scores, dtype=np.float64)
    return float(((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean())


def equal_length_share(won: Floats, first: Floats, second: Floats, *, confidence: float) -> Figure | None:
    """The share that `first` would win were its answers as long as `second`'s. won, first, second (lengths): [n] each.

    P(first wins) = sigmoid(s + effect x), x = (first - second) / (first + second) by its root mean square; the share
    is sigmoid(s), its interval by the sandwich estimator over prompts. None when no lengths differ. It is a statement
    about this model of votes: where the two hardly ever write equally long answers, it is extrapolated.
    """
    total = first + second
    x = np.divide(first - second, total, out=np.zeros_like(total), where=total > 0)
    scale = float(np.sqrt((x * x).mean())) if len(x) else 0.0
    if not scale:
        return None
    design = np.column_stack([np.ones_like(x), x / scale])
    fit = fit_logistic(design, won, np.arange(len(won)), ridge=_RIDGE)
    strength, half = float(fit.coefficients[0]), z_of(confidence) * float(np.sqrt(max(0.0, fit.covariance[0, 0])))
    return Figure(float(expit(strength)), float(expit(strength - half)), float(expit(strength + half)), len(won))


def _pair(
    i: int, j: int, first: Mapping[str, PromptScore], second: Mapping[str, PromptScore], confidence: float
) -> tuple[PairShare, float]:
    both = [
        (vote, _words(row), _words(second[name]))
        for name, row in first.items()
        if (vote := votes(row, second[name])) is not None
    ]
    if not both:
        raise DataError("no prompt has a grade of both models: there is nothing to compare.")
    won, a, b = np.array(both, dtype=np.float64).T
    level = equal_length_share(won, a, b, confidence=confidence)
    one_sided = min(float((a >= b).mean()), float((a <= b).mean())) < _ONE_SIDED
    return PairShare(i, j, _share(won, confidence), 1.0, level, level is not None and one_sided, False), _p(won)


def _share(won: Floats, confidence: float) -> Figure:
    """One answer a prompt: Tango's interval of (wins - losses) / n, which counts ties right. Else `figure`."""
    if np.isin(won, (0.0, 0.5, 1.0)).all():
        # won - lost of zeros and ones: gains and losses are its votes, and a tie is neither.
        moved = difference((won == 1.0) * 1.0, (won == 0.0) * 1.0, None, confidence=confidence)
        assert moved is not None and moved.low is not None and moved.high is not None
        return Figure((1 + moved.value) / 2, (1 + moved.low) / 2, (1 + moved.high) / 2, moved.count)
    found = figure(won, Range(0.0, 1.0), confidence=confidence)
    assert found is not None
    return found


def _p(won: Floats) -> float:
    """Sign test of votes; with several answers a prompt, Wilcoxon's signed ranks of what is over one half."""
    if np.isin(won, (0.0, 0.5, 1.0)).all():
        return mcnemar(int((won == 1.0).sum()), int((won == 0.0).sum()))
    moved = won[won != 0.5] - 0.5
    return float(wilcoxon(moved).pvalue) if len(moved) else 1.0


def _excludes_half(share: Figure) -> bool:
    return share.low is not None and share.high is not None and not share.low <= 0.5 <= share.high


def _turned(share: Figure) -> Figure:
    low = None if share.high is None else 1 - share.high
    high = None if share.low is None else 1 - share.low
    return Figure(1 - share.value, low, high, share.count)


def _words(row: PromptScore) -> float:
    """Mean words of its answers."""
    return float(np.mean([len(answer.split()) for answer in row.answers])) if row.answers else 0.0
