"""The hook that lets a live run grow and shrink: what `raylign scale` wrote is followed after each step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from raylign.trainer.loops.hooks import OnlineProgress, StepReport


class ScalingHook:
    """`wanted()`: rollout workers the run should have now; `adjust`: makes it so, waiting for no start."""

    def __init__(self, wanted: Callable[[], int], adjust: Callable[[int], Awaitable[None]]) -> None:
        self._wanted, self._adjust = wanted, adjust

    async def on_start(self, progress: OnlineProgress) -> Mapping[str, float]:
        """The run begins with what its settings say."""
        return {}

    async def after_step(self, report: StepReport, *, last: bool) -> Mapping[str, float]:
        """Between two steps no prompt is on its way, so a worker that leaves loses nothing."""
        if not last:
            await self._adjust(self._wanted())
        return {}
