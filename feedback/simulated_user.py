"""A user with a stated taste who is shown two answers and picks one: feedback whose truth is known. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.types import Completion, FinishReason, Prompt

Taste = Callable[[Prompt, Completion], float]


@dataclass(frozen=True, slots=True)
class Pick:
    """One side-by-side choice, with the column names of a preference data set."""

    prompt_id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_finished: bool  # False: cut by length, so the reward model must not see an end token after it
    rejected_finished: bool


def prefers_first(gap: float, *, noise: float, draw: float) -> bool:
    """Bradley and Terry's choice: True with probability sigmoid(gap / noise). `draw` is uniform in [0, 1)."""
    if noise == 0:
        return gap > 0
    return draw < 1 / (1 + math.exp(-max(-50.0, min(50.0, gap / noise))))


@dataclass(frozen=True, slots=True)
class SimulatedUser:
    """Picks by Bradley and Terry (1952): P(a over b) = sigmoid((taste(a) - taste(b)) / noise).

    `noise` is in taste units: at 0 the better answer always wins. Choices depend on `seed` and the prompt's id only,
    so a log is the same whatever order the prompts come in.
    """

    taste: Taste
    noise: float
    seed: int

    def pick(self, prompt: Prompt, shown: Sequence[Completion]) -> Pick | None:
        """The choice between two shown answers; None when there is nothing to choose: equal texts or equal scores."""
        first, second = shown
        if first.text.strip() == second.text.strip():
            return None
        gap = self.taste(prompt, first) - self.taste(prompt, second)
        if gap == 0:
            return None
        draw = random.Random(f"{self.seed}/{prompt.prompt_id}").random()
        wins = prefers_first(gap, noise=self.noise, draw=draw)
        chosen, rejected = (first, second) if wins else (second, first)
        finished = [c.finish_reason is FinishReason.STOP for c in (chosen, rejected)]
        return Pick(prompt.prompt_id, prompt.text, chosen.text, rejected.text, *finished)
