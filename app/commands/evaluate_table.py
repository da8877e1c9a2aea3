"""The figures of suites as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raylign.evals.statistics import Figure, Line
from raylign.records.model_names import short_model


def table(lines: Sequence[Line], model: str, against: str | None, results: Path) -> str:
    """One line a suite: its figure with the 95 % interval, and with another model the gain over it."""
    head = [
        "suite",
        "prompts",
        short_model(model),
        *([f"gain over {short_model(against)}", "p"] if against else []),
        "unit",
    ]
    rows = [head]
    for line in lines:
        n = line.found.count if line.found else 0
        gain = [_figure(line.gain, signed=True), "" if line.p is None else f"{line.p:.2g}"] if against else []
        rows.append([line.suite, f"{n}", _figure(line.found), *gain, line.unit])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    text += [f"{line.suite}: {line.failed} prompts have no grade and are left out" for line in lines if line.failed]
    notes = "in brackets: 95 % intervals over prompts like these; higher is better"
    if against:
        notes += "; p: of no difference, corrected for the number of suites (Holm)"
    return "\n".join([*text, "", notes, f"answers and scores: {results}/"])


def _figure(found: Figure | None, *, signed: bool = False) -> str:
    if found is None:
        return "-"
    form = "+.3f" if signed else ".3f"
    if found.low is None or found.high is None:
        return f"{found.value:{form}} [not known]"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"
