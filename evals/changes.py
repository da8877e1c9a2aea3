"""Suites before and after a run, as the run's records keep them."""

from __future__ import annotations

from collections.abc import Sequence

from raylign.evals.results import SuiteResult
from raylign.evals.slices import slice_lines
from raylign.evals.statistics import Line
from raylign.evals.suite_lines import suite_lines
from raylign.records.suite_changes import SuiteChange


def suite_changes(after: Sequence[SuiteResult], before: Sequence[SuiteResult]) -> list[SuiteChange]:
    """Every suite, then every slice. Suites without a prompt that both models have a score of are left out.

    p is corrected among the suites, and among the slices (Holm). Raises DataError where suites are not the same.
    """
    return [change for line in [*suite_lines(after, before), *slice_lines(after, before)] if (change := _change(line))]


def _change(line: Line) -> SuiteChange | None:
    found, gain = line.found, line.gain
    if found is None or gain is None:
        return None
    return SuiteChange(
        suite=line.suite,
        part=line.part,
        unit=line.unit,
        prompts=gain.count,
        failed=line.failed,
        before=found.value - gain.value,
        after=found.value,
        gain=gain.value,
        low=gain.low,
        high=gain.high,
        p=line.p,
    )
