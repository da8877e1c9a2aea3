"""What a reader should do next, the most urgent first; every entry follows from something on the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raylign.records.alerts import Alert
from raylign.records.report.panels import Question
from raylign.records.report.shares import FEW_ROWS
from raylign.records.report.tone import Tone
from raylign.records.report.verdict import Verdict
from raylign.records.summary import RunSummary

_MOST = 5


def _when_all_is_well(verdict: Verdict, summary: RunSummary) -> str:
    if summary.preference_vs_start is None and verdict.shares:
        return "Use it in the next run: name this run's folder as reward.model or policy.model there."
    return "Have people compare answers of both models before it is used: no person has judged it here."


def next_steps(
    verdict: Verdict,
    questions: Sequence[Question],
    alerts: Sequence[Alert],
    summary: RunSummary | None,
    asked: Path | None = None,
) -> tuple[str, ...]:
    """At most five sentences. For a run without remarks: how to have people judge it.

    `asked`: the file of answers that the reward model's ensemble is least sure of.
    """
    found = [f"{alert.kind.value.capitalize()} (step {alert.step}): {alert.text}" for alert in alerts if alert.serious]
    if summary is None:
        found.append("Let the run end, or resume it from its last checkpoint with the command below.")
    elif verdict.tone is Tone.WARNING:
        found.append("Do not use this model in place of the one it started from.")
    found += [f"{panel.title}: {panel.warning}" for question in questions for panel in question.panels if panel.warning]
    if asked:
        found.append(
            f"Have people choose between the answers in {asked.name} (fill in choice: a or b), where the reward "
            "model's ensemble is least sure; it is a log that `raylign feedback build` reads."
        )
    rows = [share.rows for share in verdict.shares]
    if summary is not None and summary.preference_comparisons:
        rows.append(summary.preference_comparisons)
    if rows and min(rows) < FEW_ROWS:
        found.append(f"Hold out at least {FEW_ROWS} rows (here: {min(rows)}), so that a small gain can be seen.")
    if summary is not None and not found:
        found.append(_when_all_is_well(verdict, summary))
    return tuple(dict.fromkeys(found))[:_MOST]
