"""The hook that lets a live run grow and shrink: what a person has ordered, else what the policy finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from raylign.rollout.autoscale import Autoscaler, StepLoad
from raylign.rollout.load import Load
from raylign.trainer.loops.hooks import OnlineProgress, StepReport


class ScalableFleet(Protocol):
    """cluster.fleet.Fleet."""

    @property
    def size(self) -> int: ...
    @property
    def expects(self) -> bool: ...
    def adjust(self, wanted: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """Workers by role; None: nobody has asked."""

    rollout: int | None
    reward: int | None


class ScalingHook:
    """Between two steps: workers join, leave and are replaced. Waits for none of it."""

    def __init__(
        self,
        rollout: ScalableFleet,
        reward: ScalableFleet,
        *,
        at_start: tuple[int, int],
        ordered: Callable[[], Wanted],
        serving: Callable[[], int],
        load: Callable[[], Load],
        policy: Autoscaler | None,
    ) -> None:
        """`at_start`: rollout workers and reward replicas; `serving`, `load`: of the rollout workers.

        `policy`: None for none; an order by a person holds against it.
        """
        self._rollout, self._reward, self._at_start = rollout, reward, at_start
        self._ordered, self._load, self._policy = ordered, load, policy
        self._serving, self._wanted = serving, at_start[0]
        self._before, self._served = load(), serving()

    async def on_start(self, progress: OnlineProgress) -> Mapping[str, float]:
        """The run begins with what its settings say."""
        self._before, self._served = self._load(), self._serving()
        self._rollout.adjust(self._wanted)
        return {}

    def lost(self) -> bool:
        """No rollout worker is left, and others come or will."""
        return not self._serving() and self._rollout.expects

    def replace(self) -> bool:
        """Where no rollout worker serves: start others. True: one is there and waits for its weights."""
        if self._serving():
            return False
        self._rollout.adjust(self._wanted)
        return self._rollout.size > 0

    async def after_step(self, report: StepReport, *, last: bool) -> Mapping[str, float]:
        """Follow the order, or the policy; figures of the fleet while the step was made."""
        total = self._load()
        passed, self._before = total.since(self._before), total
        served, self._served = self._served, self._serving()  # who joined at the step's end has done nothing in it
        step = StepLoad(
            workers=max(1, min(served, self._served)),
            step_s=report.seconds["time/step"],
            wait_s=report.seconds["time/rollout_wait"],
            generating_s=passed.generating_s,
            worker_s=passed.worker_s,
            tokens=sum(meta.response_tokens for group in report.groups for meta in group.metas),
            ready=report.ready,
        )
        replicas = self._reward.size
        order = self._ordered()
        wanted = self._at_start[0]
        if self._policy is not None:
            wanted = self._policy.after_step(step)
        self._wanted = wanted = order.rollout or wanted
        if not last:
            self._rollout.adjust(wanted)
            self._reward.adjust(order.reward or self._at_start[1])
        return {
            "rollout/wanted": float(wanted),
            "rollout/idle_share": step.idle_share,
            "reward/replicas": float(replicas),
        }
