"""How far an engine's canary log-probs may be from the learner's: as it is set, or as it was measured. Pure.

Weights are compared tensor by tensor before the canaries are asked, so between right weights the gap is the distance of
two right implementations: what their formats and kernels round differently. It grows with depth and shrinks with width,
and no constant fits every model. So the first publication of a run measures it, on weights that are known to be the
same, and later ones may be FACTOR times as far. What the first one is held to is a ceiling: two implementations that
differ by more do not compute the same model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

FACTOR = 3.0
"""A later gap may be this many times the first: a policy that has become surer of its tokens is also rounded more."""


@dataclass(frozen=True, slots=True)
class GapBounds:
    """Nats, mean over the canary tokens."""

    floor: float  # a limit below this would refuse a harmless gap
    ceiling: float  # no limit is above this, measured or not


EXACT = GapBounds(1e-3, 0.05)
"""Engine and learner in float32: 1e-5 was measured on CPU; a card's attention may round its factors to TF32."""
ROUNDED = GapBounds(0.02, 1.0)
"""One of them in bfloat16: 0.06 was measured with SmolLM2-135M on CPU."""


class CanaryLimit:
    """The limit of one run's engines."""

    def __init__(self, given: float, bounds: GapBounds = ROUNDED) -> None:
        """`given`: sync.max_canary_gap; 0 measures."""
        self._given, self._bounds = given, bounds
        self._measured: float | None = None

    @property
    def value(self) -> float:
        """What holds now."""
        if self._given:
            return self._given
        return self._bounds.ceiling if self._measured is None else self._measured

    def settle(self, version: int, gaps: Sequence[float]) -> float:
        """What a publication is judged by. `gaps`: of each engine whose weights were right.

        The first call with one below the ceiling fixes the limit for the run. The smallest counts, so that one engine
        that computes wrongly beside right ones is not taken for the noise.
        """
        sound = [gap for gap in gaps if gap <= self._bounds.ceiling]  # false for what is not a number
        if not self._given and self._measured is None and sound:
            wanted = max(self._bounds.floor, FACTOR * min(sound))
            self._measured = min(wanted, self._bounds.ceiling)
            logger.warning(
                "version %d: engine and learner serve the same weights and differ by %.3g nats a token on the canaries;"
                " an engine beyond %.3g is refused from now on (sync.max_canary_gap=0)",
                version,
                min(sound),
                self._measured,
            )
        return self.value

    def source(self) -> str:
        """Where the present limit comes from, for an error."""
        if self._given:
            return f"sync.max_canary_gap={self._given:g}"
        if self._measured is None:
            return f"at most {self._bounds.ceiling:g} before a gap was measured; sync.max_canary_gap sets a limit"
        return (
            f"at most {self._measured:.3g}, measured at the first publication; sync.max_canary_gap sets another limit"
        )
