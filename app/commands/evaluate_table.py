"""The figures of suites as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raylign.evals.statistics import Figure, Line
from raylign.records.model_names import short_model


def table(lines: Sequence[Line], model: str, against: str | None, results: Path, slices: Sequence[Line] = ()) -> str:
    """One line a suite: its figure with the 95 % interval, and with another model the gain over it; then its slices."""
    text = _columns(lines, model, against)
    text += [f"{line.suite}: {line.failed} prompts have no grade and are left out" for line in lines if line.failed]
    notes = "in brackets: 95 % intervals over prompts like these; higher is better"
    if against:
        notes += "; p: of no difference, corrected for the number of suites (Holm)"
    text += ["", notes]
    if slices:
        than = short_model(against) if against else "the suite's other prompts"
        text += ["", *_columns(slices, model, against), ""]
        text += [f"p of slices: of no difference from {than}, corrected for the {len(slices)} slices (Holm)"]
    return "\n".join([*text, f"answers and scores: {results}/"])


def _columns(lines: Sequence[Line], model: str, against: str | None) -> list[str]:
    parts = any(line.part for line in lines)
    gain = [f"gain over {short_model(against)}"] if against else []
    head = ["suite", *(["slice"] if parts else []), "prompts", short_model(model), *gain]
    rows = [[*head, *(["p"] if parts or against else []), "unit"]]
    for line in lines:
        row = [line.suite, *([line.part] if parts else []), f"{line.found.count if line.found else 0}"]
        row += [_figure(line.found), *([_figure(line.gain, signed=True)] if against else [])]
        if parts or against:
            row.append("too few to say" if parts and line.p is None else "" if line.p is None else f"{line.p:.2g}")
        rows.append([*row, line.unit])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _figure(found: Figure | None, *, signed: bool = False) -> str:
    if found is None:
        return "-"
    form = "+.3f" if signed else ".3f"
    if found.low is None or found.high is None:
        return f"{found.value:{form}} [not known]"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"
