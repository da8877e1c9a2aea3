"""What an external judge of answers is sent of one, and what it may say. Standard library only: light to start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer with its prompt."""

    prompt: str  # as plain text: the only turn, or `role: content` lines
    completion: str
    messages: tuple[tuple[str, str], ...]  # role and content of the prompt's turns
    completion_ids: tuple[int, ...]
    data_source: str
    ground_truth: str | None
    columns: Mapping[str, Any]
    finished: bool = True  # False: cut by length
    templated_prompt: str = ""  # as the policy reads it, special tokens included; "" unless somebody reads it
    templated_query: str = ""  # that and the answer as sampled, its end token included


@dataclass(frozen=True, slots=True)
class NotScored:
    """Why there is no score."""

    reason: str
    unreadable: bool = False  # it answered, and no score could be read from its reply
    always: bool = field(default=False, compare=False)  # not because of this answer: any other would fare alike


Score = float | NotScored | None
"""Of one answer; None: this judge does not apply to it, and the others decide (TRL's meaning of None)."""


class SampleScorer(Protocol):
    """A function, a server or a judge that scores answers."""

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One a sample, in order. Never raises for what the other side does."""
        ...


def as_score(value: object) -> Score:
    """A number as it was given, if it is one that can be trained on."""
    if value is None:
        return None
    if isinstance(value, str | bytes):
        return NotScored(f"it gave {type(value).__name__}, not a number", always=True)
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        return NotScored(f"it gave {type(value).__name__}, not a number", always=True)
    return number if math.isfinite(number) else NotScored(f"it gave {number}")
