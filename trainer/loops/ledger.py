"""The hook that counts over the whole run: what became of every sample, and how many engines serve.

It writes a step into the ledger before the step is reported anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from raylign.conf.errors import RunFailed
from raylign.data.types import FinishReason, RewardFailure, SampleKey
from raylign.records.ledger import CUT, EQUAL, LedgerEntry
from raylign.trainer.loops.hooks import OnlineProgress, StepReport

_TRAINED, _FAILED, _FILTERED = "ledger/trained", "ledger/failed", "ledger/filtered"
_MASKED, _CHECKED = "ledger/masked", "data/masks_checked"


class LedgerBook(Protocol):
    """Where ended samples are written down (records.ledger.Ledger)."""

    def start(self, from_step: int) -> None: ...
    def commit(self, entry: LedgerEntry) -> None: ...


class LedgerHook:
    """Running totals. `before`: the totals of an earlier start of this run, by metric name; empty for a new one."""

    def __init__(self, book: LedgerBook, serving: Callable[[], int], before: Mapping[str, float]) -> None:
        self._book = book
        self._serving = serving
        self._totals = {name: before.get(name, 0.0) for name in (_TRAINED, _FAILED, _FILTERED, _MASKED, _CHECKED)}

    async def on_start(self, progress: OnlineProgress) -> Mapping[str, float]:
        """Nothing was sampled yet; what an earlier life did after this step is void."""
        self._book.start(progress.step)
        return {}

    async def after_step(self, report: StepReport, *, last: bool) -> Mapping[str, float]:
        """The totals with this step in."""
        entry = ledger_entry(report)
        self._book.commit(entry)
        trained = len(entry.trained)
        self._totals[_TRAINED] += trained
        self._totals[_FAILED] += report.failed
        self._totals[_MASKED] += len(entry.filtered.get(CUT, ()))  # cut by length, and not trained for it
        self._totals[_FILTERED] += len(report.filtered)
        self._totals[_CHECKED] += trained  # each was checked when the step was assembled (data/experience.py)
        return {**self._totals, "rollout/workers": float(self._serving())}


def ledger_entry(report: StepReport) -> LedgerEntry:
    """How each sample of the step ended. Raises RunFailed when that is not what the step trained."""
    metas = [meta for group in report.groups for meta in group.metas]
    failed = {outcome.key: outcome.reason for outcome in report.outcomes if isinstance(outcome, RewardFailure)}
    scored = [meta for meta in metas if meta.key not in failed]
    cut: tuple[SampleKey, ...] = ()
    if report.experience.num_sequences != len(scored):
        cut = tuple(meta.key for meta in scored if meta.finish_reason is FinishReason.LENGTH)
    trained = tuple(meta.key for meta in scored if meta.key not in set(cut))
    if len(trained) != report.experience.num_sequences:
        raise RunFailed(
            f"ledger, step {report.progress.step}: {report.experience.num_sequences} samples were trained and "
            f"{len(trained)} are accounted for as such"
        )
    left_out = {EQUAL: tuple(report.filtered), CUT: cut}
    return LedgerEntry(
        step=report.progress.step,
        trained=trained,
        filtered={why: keys for why, keys in left_out.items() if keys},
        failed=_by_reason(failed),
        versions=(min(m.min_policy_version for m in metas), max(m.max_policy_version for m in metas)),
        data=report.progress.data,
    )


def _by_reason(failed: Mapping[SampleKey, str]) -> Mapping[str, tuple[SampleKey, ...]]:
    reasons: Iterable[str] = dict.fromkeys(failed.values())
    return {why: tuple(key for key, reason in failed.items() if reason == why) for why in reasons}
