"""What a run does about its alerts, as `guard.*` says: it stops, or goes back to its best checkpoint and ends there.

Training is not begun again from the best checkpoint in the same run: the same settings would make the same steps and
come to the same place. Going back moves LATEST, so the command that resumes, with other settings, goes on from there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from raylign.app.launch.export import export_step
from raylign.app.launch.stage import Stage
from raylign.conf.errors import Preempted
from raylign.conf.schema import GuardAction, GuardConfig
from raylign.records.alerts import GUARDED, WINDOW, Alert, AlertKind, action_of
from raylign.trainer.checkpoint import Checkpoint, CheckpointError
from raylign.trainer.loops.hooks import MetricSink


class GoBack(Exception):
    """A rule of the guard wants the best checkpoint back. `alert`: its sign."""

    def __init__(self, alert: Alert) -> None:
        super().__init__(alert.text)
        self.alert = alert


class Guard:
    """A loops.MetricSink around another: once a step is written, what its alerts ask for is done.

    `stopped_by`: the setting that stops the run, once one does.
    """

    def __init__(self, inner: MetricSink, config: GuardConfig, tell: Callable[[str], None]) -> None:
        self._inner, self._config, self._tell = inner, config, tell
        self._back: Alert | None = None
        self.stopped_by = ""

    def sign(self, alert: Alert) -> None:
        """An alert of the step that is being written."""
        action = action_of(alert.kind, self._config)
        if action is GuardAction.stop and not self.stopped_by:
            self.stopped_by = setting(alert, action)
            self._tell(f"{self.stopped_by}: the run saves and ends after step {alert.step}")
        elif action is GuardAction.rollback and self._back is None:
            self._back = alert

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step. Raises GoBack, and what the sink inside raises."""
        self._inner.log(step, metrics)
        if self._back is not None:
            raise GoBack(self._back)


async def went_back(
    stage: Stage,
    alert: Alert,
    *,
    restore: Callable[[Checkpoint], Awaitable[object]],
    export: Callable[[str], Awaitable[None]],
    best: int | None = None,
) -> Preempted:
    """The best checkpoint is put back and its model exported; how the run ends. `best`: by a metric of choice."""
    store, why = stage.store(), f"{setting(alert, GuardAction.rollback)}: step {alert.step}: {alert.kind.value}"
    before = [step for step in store.steps() if step <= alert.step - WINDOW]
    step = best if best is not None else stage.tracker.best_step(before)
    if step is None:
        return Preempted(f"{why}; there is no checkpoint from before, so there is nothing to go back to")
    try:
        found = store.go_back_to(step)
    except CheckpointError as error:
        return Preempted(f"{why}; step {step} cannot be gone back to: {error}")
    await restore(found)
    exported = await export_step(stage.folder.export, step, export, stage.model_card())
    return Preempted(f"{why}; went back to step {step}, whose model is {exported}")


def best_kept(stage: Stage) -> Callable[[Sequence[int]], int | None]:
    """Which of the saved steps must not retire, for a rule may want it back; None: no rule does."""
    wanted = any(getattr(stage.config.guard, name) is GuardAction.rollback for name in GUARDED.values())
    return stage.tracker.best_step if wanted else lambda saved: None


def setting(alert: Alert, action: GuardAction) -> str:
    """`guard.kl=stop`."""
    return f"guard.{GUARDED[alert.kind]}={action.value}"


_LIMITS = {
    "kl": ("kl_limit",), "entropy": ("entropy_low", "entropy_high"), "length": ("length_factor",),
    "repetition": ("repetition_limit",),
}  # fmt: skip


def guard_rows(guard: GuardConfig, *, online: bool) -> list[tuple[str, ...]]:
    """The rules that can hold in such a run, for `plan`: sign, action, limits."""
    rows: list[tuple[str, ...]] = []
    for kind, name in GUARDED.items():
        if online or kind is AlertKind.ENTROPY:
            limits = ", ".join(f"{key}={getattr(guard, key):g}" for key in _LIMITS.get(name, ()))
            rows.append((kind.value, f"guard.{name}={getattr(guard, name).value}", limits))
    return rows
