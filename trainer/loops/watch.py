"""Whether a run still learns: a destroyed policy trains to the end without a bad number, and must not end well. Pure.

Signs that a loss does not show: the gradient is exactly 0 although there is something to learn from, and the
entropy has risen from a language model's to that of a uniform draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from raylign.conf.errors import RunFailed

ZERO_GRADIENT_STEPS = 3
"""Steps in a row whose gradient is exactly 0: in one step every clip or margin may be saturated, not in three."""

_FLAT, _SHAPED = 0.99, 0.9
"""Of ln V: at or above the first a policy chooses uniformly, below the second it did not."""


class LearningWatch:
    """One role's steps in order. `group`: of its metric names, "policy" or "train"."""

    def __init__(self, group: str, *, lr_key: str, vocab_size: int = 0) -> None:
        """`vocab_size`: token ids of the policy; 0: its entropy is not looked at."""
        self._group, self._lr_key = group, lr_key
        self._max_entropy = math.log(vocab_size) if vocab_size > 1 else math.inf
        self._zeros = 0
        self._was_shaped = False

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises RunFailed when the policy is destroyed or nothing has been learnt for some steps."""
        self._check_entropy(step, metrics.get(f"{self._group}/entropy"))
        still = metrics.get(f"{self._group}/grad_norm") == 0.0 and metrics.get("reward/std", 1.0) > 0.0
        self._zeros = self._zeros + 1 if still else 0
        if self._zeros >= ZERO_GRADIENT_STEPS:
            raise RunFailed(
                f"{self._group}, step {step}: the gradient has been exactly 0 for {self._zeros} steps though there was "
                f"something to learn from: the model is saturated or destroyed and learns no more; resume from an "
                f"earlier checkpoint (checkpoint.resume=<folder>) with a lower {self._lr_key}"
            )

    def _check_entropy(self, step: int, entropy: float | None) -> None:
        if entropy is None:
            return
        if self._was_shaped and entropy >= _FLAT * self._max_entropy:
            raise RunFailed(
                f"{self._group}, step {step}: the policy is destroyed: its entropy is {entropy:.3f} nats a token, that "
                f"of a uniform draw ({self._max_entropy:.3f}); resume from an earlier checkpoint "
                f"(checkpoint.resume=<folder>) with a lower {self._lr_key}"
            )
        self._was_shaped = self._was_shaped or entropy < _SHAPED * self._max_entropy
