"""summary.json: the figures a reader asks for first."""

from __future__ import annotations

import re
from collections.abc import Mapping

from raylign.app.launch.online import OnlineOutcome
from raylign.conf.held_out import held_out_sets
from raylign.conf.schema import RunConfig
from raylign.records.metrics_log import MetricHistory
from raylign.records.report.shares import wilson_interval
from raylign.records.summary import RunSummary
from raylign.trainer.loops.offline import OfflineProgress

_NOT_IN_NAMES = re.compile(r"[^a-z0-9_]")


def online_summary(config: RunConfig, outcome: OnlineOutcome, history: MetricHistory, seconds: float) -> RunSummary:
    """Held-out figures before and after, and the last measured KL."""
    start = RunSummary(
        algorithm=config.algorithm.label,
        policy_start=config.policy.model,
        steps=outcome.progress.step,
        seconds_total=seconds,
        kl_final=_last(history, "policy/kl"),
    )
    if outcome.held_out is None:
        return start
    paired = outcome.held_out.outcome(outcome.progress.step)
    low, high = wilson_interval(paired.preference_vs_start, paired.num_prompts)
    return RunSummary(
        algorithm=start.algorithm,
        policy_start=start.policy_start,
        steps=start.steps,
        seconds_total=start.seconds_total,
        kl_final=start.kl_final,
        preference_vs_start=paired.preference_vs_start,
        preference_low=low,
        preference_high=high,
        preference_comparisons=paired.num_prompts if paired.preference_vs_start is not None else None,
        gold_score_before=paired.gold_score_before,
        gold_score_after=paired.gold_score_after,
        reward_before=paired.reward_before,
        reward_after=paired.reward_after,
        fluency_before=paired.fluency_before,
        fluency_after=paired.fluency_after,
    )


def offline_summary(
    config: RunConfig, progress: OfflineProgress, history: MetricHistory, seconds: float, rows: Mapping[str, int]
) -> RunSummary:
    """The last loss, the last figures of every held-out set with its number of `rows`, and the best step."""
    figures = ("loss", "accuracy", "margin", "rewards/accuracies", "rewards/margins")
    held_out = [f"eval/{name}/{figure}" for name in held_out_sets(config.data.eval) for figure in figures]
    found = {_NOT_IN_NAMES.sub("_", name.lower()): _last(history, name) for name in ("train/loss", *held_out)}
    found |= {_NOT_IN_NAMES.sub("_", f"eval_{name.lower()}_rows"): float(count) for name, count in rows.items()}
    if progress.best is not None:
        found |= {"best_step": float(progress.best.step), "best_value": progress.best.value}
    return RunSummary(
        algorithm=config.algorithm.label,
        policy_start=config.policy.model,
        steps=progress.step,
        seconds_total=seconds,
        extra={name: value for name, value in found.items() if value is not None},
    )


def _last(history: MetricHistory, name: str) -> float | None:
    values = [value for _, value in history.series(name) if value is not None]
    return values[-1] if values else None
