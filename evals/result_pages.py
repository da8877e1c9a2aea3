"""The pages of `raylign eval` and `raylign gate`. What models and prompts say is escaped by the templates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raylign.evals.gate import GateResult, Verdict
from raylign.evals.results import SuiteResult
from raylign.evals.statistics import Figure, Line
from raylign.pages.frame import render_page
from raylign.pages.numbers import short
from raylign.records.atomic import write_atomic

_HERE = Path(__file__).parent
MOST_SHOWN = 60
"""Prompts of a suite whose answers are on the page."""


def write_gate_page(path: Path, result: GateResult, candidate: str, against: str | None, confidence: float) -> None:
    """The decision, condition by condition."""
    said = {
        Verdict.PASSED: f"{candidate} may go out",
        Verdict.FAILED: f"{candidate} may not go out",
        Verdict.NOT_ENOUGH: f"Not enough data to let {candidate} out",
    }
    values = {
        "candidate": candidate,
        "against": against,
        "headline": said[result.verdict],
        "tone": "warning" if result.verdict is Verdict.FAILED else "plain",
        "checked": result.checked,
        "confidence": f"{100 * confidence:g}\u00a0%",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, render_page(_HERE / "gate.html", values))


def write_eval_page(
    path: Path,
    lines: Sequence[Line],
    slices: Sequence[Line],
    results: Sequence[SuiteResult],
    model: str,
    against: str | None,
) -> None:
    """The tables of suites and of their slices, and what the model answered."""
    values = {
        "model": model,
        "against": against,
        "headline": _headline(lines, model, against),
        "remarks": [f"Worse than {against} on {line.suite}, {line.part}." for line in slices if line.worse],
        "lines": lines,
        "slices": slices,
        "results": [result for result in results if any(row.answers for row in result.rows)],
        "most": MOST_SHOWN,
        "figure": _figure,
        "short": short,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, render_page(_HERE / "eval.html", values))


def _headline(lines: Sequence[Line], model: str, against: str | None) -> str:
    if against is None:
        return f"{model} on {len(lines)} {'suite' if len(lines) == 1 else 'suites'}"
    better = [line.suite for line in lines if line.better]
    worse = [line.suite for line in lines if line.worse]
    said = [f"better on {', '.join(better)}"] if better else []
    said += [f"worse on {', '.join(worse)}"] if worse else []
    if not said:
        return f"No suite tells {model} from {against}"
    return f"{model} is {' and '.join(said)} than {against}"


def _figure(found: Figure | None) -> str:
    if found is None:
        return "\u2013"
    if found.low is None or found.high is None:
        return short(found.value)
    return f"{short(found.value)} [{short(found.low)}, {short(found.high)}]"
