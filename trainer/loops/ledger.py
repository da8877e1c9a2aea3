"""The hook that counts over the whole run: what became of every sample, and how many engines serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raylign.trainer.loops.hooks import OnlineProgress, StepReport

_TRAINED, _FAILED, _FILTERED = "ledger/trained", "ledger/failed", "ledger/filtered"
_MASKED, _CHECKED = "ledger/masked", "data/masks_checked"


class LedgerHook:
    """Running totals. `before`: the totals of an earlier start of this run, by metric name; empty for a new one."""

    def __init__(self, serving: Callable[[], int], before: Mapping[str, float]) -> None:
        self._serving = serving
        self._totals = {name: before.get(name, 0.0) for name in (_TRAINED, _FAILED, _FILTERED, _MASKED, _CHECKED)}

    async def on_start(self, progress: OnlineProgress) -> Mapping[str, float]:
        """Nothing was sampled yet."""
        return {}

    async def after_step(self, report: StepReport, *, last: bool) -> Mapping[str, float]:
        """The totals with this step in."""
        trained = report.experience.num_sequences
        self._totals[_TRAINED] += trained
        failed = report.failed
        self._totals[_FAILED] += failed
        self._totals[_MASKED] += len(report.outcomes) - trained - failed  # cut by length, and not trained for it
        self._totals[_FILTERED] += report.filtered
        self._totals[_CHECKED] += trained  # each was checked when the step was assembled (data/experience.py)
        return {**self._totals, "rollout/workers": float(self._serving())}
