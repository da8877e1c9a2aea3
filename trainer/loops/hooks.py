"""What happens around the steps of a loop: logging, samples, evaluation, checkpoints. One hook, one concern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from raylign.data.types import Reward, RewardFailure, RewardOutcome, RolloutMeta, SampleKey
from raylign.rollout.interfaces import EngineUse
from raylign.trainer.functional.kl import KLState
from raylign.trainer.loops.interfaces import ExperienceHandles, GroupHandle, PublishResult, UpdateResult


@dataclass(frozen=True, slots=True)
class OnlineProgress:
    """Where a run stands between two steps: together with the learners' state, all a resume needs."""

    step: int
    kl: KLState
    data: Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class StepReport:
    """Everything a finished step leaves to the hooks."""

    progress: OnlineProgress
    groups: Sequence[GroupHandle]
    outcomes: Sequence[RewardOutcome]
    experience: ExperienceHandles
    policy: UpdateResult
    critic: UpdateResult | None
    published: PublishResult
    seconds: Mapping[str, float]
    filtered: Sequence[SampleKey] = ()  # samples left out because their group's rewards were all equal
    ready: int = 0  # finished steps of rollouts that wait for the training

    @property
    def failed(self) -> int:
        """Samples without a reward."""
        return sum(isinstance(outcome, RewardFailure) for outcome in self.outcomes)

    def _speed(self, sampled: int) -> Mapping[str, float]:
        """A step that came from the journal was not generated now."""
        seconds = self.seconds.get("time/generation")
        return {} if seconds is None else {"rollout/tokens_per_s": sampled / seconds}

    def metrics(self) -> Mapping[str, float]:
        """The step's line in metrics.jsonl."""
        critic = {} if self.critic is None else {f"critic/{k}": v for k, v in self.critic.metrics.items()}
        metas = [meta for group in self.groups for meta in group.metas]
        scored = {outcome.key for outcome in self.outcomes if isinstance(outcome, Reward)}
        sampled = sum(meta.response_tokens for meta in metas)
        trained = sum(meta.response_tokens for meta in metas if meta.key in scored)
        return {
            **self.experience.metrics,
            **{k if "/" in k else f"policy/{k}": v for k, v in self.policy.metrics.items()},
            **critic,
            "reward/failed": float(self.failed),
            "reward/unreadable": float(sum(isinstance(o, RewardFailure) and o.unreadable for o in self.outcomes)),
            # Step s trains on what version s - 1 sampled, when nothing runs ahead.
            "rollout/staleness_max": float(self.progress.step - 1 - min(meta.min_policy_version for meta in metas)),
            "rollout/staleness": self.progress.step - 1 - _mean_version(metas),
            "rollout/mixed_versions": sum(m.min_policy_version < m.max_policy_version for m in metas) / len(metas),
            "rollout/steps_ready": float(self.ready),
            "rollout/filtered": float(len(self.filtered)),
            **self._speed(sampled),
            "perf/tokens_per_s": trained / self.seconds["time/step"],
            "policy/kl_coef": self.progress.kl.coef,
            "sync/seconds": self.published.seconds,
            "sync/bytes": float(self.published.num_bytes),
            "sync/verified": float(self.published.verified_workers),
            "sync/canary_gap": self.published.canary_gap,
            "sync/canary_limit": self.published.canary_limit,
            **_engine_figures(self.published.use),
            **self.seconds,
        }


def _engine_figures(use: Mapping[str, EngineUse]) -> dict[str, float]:
    """Of each engine that says what it did, and the fullest cache and all preemptions. Worker "rollout/3" is "3"."""
    if not use:
        return {}
    figures = {
        "engine/kv_cache_peak": max(one.cache_peak for one in use.values()),
        "engine/preemptions": float(sum(one.preemptions for one in use.values())),
    }
    restarts = [one.environment_restarts for one in use.values() if one.environment_restarts is not None]
    if restarts:
        figures["rollout/environment_restarts"] = float(sum(restarts))
    for name, one in use.items():
        number = name.rpartition("/")[2]
        figures[f"engine/{number}/kv_cache_peak"] = one.cache_peak
        figures[f"engine/{number}/preemptions"] = float(one.preemptions)
    return figures


def _mean_version(metas: Sequence[RolloutMeta]) -> float:
    """Over response tokens."""
    tokens = sum(meta.response_tokens for meta in metas)
    return sum(meta.mean_policy_version * meta.response_tokens for meta in metas) / tokens


class LoopHook(Protocol):
    """Called by a loop in the order given; what it returns joins the step's metrics. An exception ends the run."""

    async def on_start(self, progress: OnlineProgress) -> Mapping[str, float]:
        """Once, after the first publication and before the first rollout."""
        ...

    async def after_step(self, report: StepReport, *, last: bool) -> Mapping[str, float]:
        """After each step; `last`: the run is complete."""
        ...


class MetricSink(Protocol):
    """The one writer of metrics.jsonl."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...


class CheckpointSaver(Protocol):
    """Makes a step resumable: every learner's state and the loop's own, in one verified folder."""

    async def save(self, progress: OnlineProgress, *, wait: bool) -> str | None:
        """None when it is saved, or without `wait` being written; else why not, where the run may go on without."""
        ...

    async def check(self) -> None:
        """Raises what a save that nobody waited for has met, when the run may not go on with it."""
        ...

    async def close(self) -> None:
        """Returns when nothing is being written any more."""
        ...


def due(step: int, every: int) -> bool:
    """True when something that happens every `every` steps happens at `step`; 0 means never."""
    return bool(every) and step % every == 0
