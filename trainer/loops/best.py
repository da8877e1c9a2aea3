"""Which step's model is the best so far, by a metric of choice. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raylign.conf.errors import RunFailed
from raylign.conf.schema import Better


@dataclass(frozen=True, slots=True)
class BestStep:
    """The best step and its value."""

    step: int
    value: float


@dataclass(frozen=True, slots=True)
class BestRule:
    """The metric that decides, as it stands in metrics.jsonl, and which way it improves."""

    metric: str
    better: Better

    def improved(self, before: BestStep | None, step: int, metrics: Mapping[str, float]) -> BestStep | None:
        """The new best when `metrics` beat `before`, else None.

        Raises RunFailed when an evaluation has no such metric: the name is wrong, and training on would find no best.
        """
        if self.metric not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("eval/")))
            raise RunFailed(f"evaluation.best={self.metric}: the evaluation gives no such metric; it gives {known}")
        value = metrics[self.metric]
        if not math.isfinite(value):
            return None
        wins = before is None or (value < before.value if self.better is Better.lower else value > before.value)
        return BestStep(step, value) if wins else None
