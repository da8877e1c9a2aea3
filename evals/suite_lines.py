"""The table of suites: one model's figures, or two models' on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence

from raylign.evals.results import SuiteResult, paired
from raylign.evals.statistics import Figure, Floats, Line, difference, figure, holm, p_value


def suite_lines(
    candidates: Sequence[SuiteResult], currents: Sequence[SuiteResult] | None, *, confidence: float = 0.95
) -> list[Line]:
    """One line a suite; beside a current model of the prompts that both have a score of, with `p` by Holm over the
    suites. Raises DataError where suites are not the same.
    """
    if currents is None:
        return [_line(one, one.scores(), None, None, confidence) for one in candidates]
    pairs = [paired(candidate, current) for candidate, current in zip(candidates, currents, strict=True)]
    corrected = holm([p_value(new, old) for new, old in pairs])
    return [
        _line(one, new, difference(new, old, one.possible, confidence=confidence), p, confidence)
        for one, (new, old), p in zip(candidates, pairs, corrected, strict=True)
    ]


def _line(one: SuiteResult, scores: Floats, gain: Figure | None, p: float | None, confidence: float) -> Line:
    found = figure(scores, one.possible, confidence=confidence)
    return Line(one.suite, one.unit, one.failed, found, gain, p)
