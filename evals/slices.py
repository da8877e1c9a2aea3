"""Figures by slice: for whom, and for what, a model is worse than a mean over all prompts shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from raylign.evals.results import PromptScore, SuiteResult, paired_rows
from raylign.evals.statistics import Floats, Line, difference, figure, holm, p_value, p_value_apart

SLICED = ("subset", "persona", "topic", "locale", "rules", "data_source")
"""Columns that slice rows where they have them: RewardBench's, those of a feedback build, and verl's."""

FEWEST = 10
"""Slices of fewer prompts are counted, and nothing is said of them."""

_MOST = 30  # of a column, largest first


def names_of(columns: Mapping[str, object]) -> tuple[str, ...]:
    """The slices that a row belongs to, as `topic: billing`."""
    found = []
    for column in SLICED:
        value = columns.get(column)
        found += [f"{column}: {one}" for one in (value if isinstance(value, list) else [value]) if _is_name(one)]
    return tuple(found)


def names_in(columns: str) -> tuple[str, ...]:
    """As `names_of`, of columns as a JSON object; "": none."""
    return names_of(json.loads(columns)) if columns else ()


def rows_by_slice(names: Sequence[Sequence[str]], *, fewest: int = 1) -> dict[str, list[int]]:
    """Rows of each slice, largest first within a column; `names[i]` are those of row i.

    Left out: slices of fewer rows, and columns whose rows all have one value.
    """
    found: dict[str, dict[str, list[int]]] = {column: {} for column in SLICED}
    for row, of_row in enumerate(names):
        for name in of_row:
            found[name.partition(": ")[0]].setdefault(name, []).append(row)
    kept: dict[str, list[int]] = {}
    for slices in found.values():
        if len(slices) > 1:
            largest = sorted(slices.items(), key=lambda item: (-len(item[1]), item[0]))[:_MOST]
            kept |= {name: rows for name, rows in largest if len(rows) >= fewest}
    return kept


def slice_lines(
    candidates: Sequence[SuiteResult], currents: Sequence[SuiteResult] | None, *, confidence: float = 0.95
) -> list[Line]:
    """One line a slice of each suite. `p`: of no difference from the current model on the same prompts, or without
    one from the suite's other prompts; corrected for the number of slices (Holm). None: too few prompts to say.
    """
    others: Sequence[SuiteResult | None] = currents or [None] * len(candidates)
    lines, values = [], []
    for candidate, current in zip(candidates, others, strict=True):
        for name, line, value in _of_suite(candidate, current, confidence):
            lines.append((name, line))
            values.append(value)
    known = [i for i, value in enumerate(values) if value is not None]
    corrected = dict(zip(known, holm([value for value in values if value is not None]), strict=True))
    return [
        Line(line.suite, line.unit, line.failed, line.found, line.gain, corrected.get(i), name)
        for i, (name, line) in enumerate(lines)
    ]


def _of_suite(
    candidate: SuiteResult, current: SuiteResult | None, confidence: float
) -> list[tuple[str, Line, float | None]]:
    """Name, line and uncorrected p of each slice."""
    if current is None:
        rows = [row for row in candidate.rows if row.value is not None]
        new, old = _scores(rows), None
    else:
        both = paired_rows(candidate, current)
        rows = [row for row, _ in both]
        new, old = _scores(rows), np.array([score for _, score in both], dtype=np.float64)
    failed = [row for row in candidate.rows if row.value is None]
    found = []
    for name, inside in rows_by_slice([row.slices for row in rows]).items():
        part = new[inside]
        gain, p = None, None
        if old is not None:
            gain = difference(part, old[inside], candidate.possible, confidence=confidence)
            p = p_value(part, old[inside])
        else:
            p = p_value_apart(part, np.delete(new, inside))
        line = Line(
            suite=candidate.suite,
            unit=candidate.unit,
            failed=sum(name in row.slices for row in failed),
            found=figure(part, candidate.possible, confidence=confidence),
            gain=gain,
            p=None,
        )
        found.append((name, line, p if len(inside) >= FEWEST else None))
    return found


def _scores(rows: Sequence[PromptScore]) -> Floats:
    return np.array([row.value for row in rows], dtype=np.float64)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)
