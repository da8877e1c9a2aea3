"""One sampled answer: its tokens as they were sampled, and what an environment put between them. Standard library only.

Everybody imports these from data/types.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class SampleKey(NamedTuple):
    """Identity of one sample for the whole life of a run: exactly-once accounting counts by it."""

    epoch: int
    prompt_id: str
    k: int


class FinishReason(Enum):
    """Why the engine stopped, by the engine's own word (never by scanning tokens)."""

    STOP = "stop"
    LENGTH = "length"  # of an episode: its tokens or its turns were used up


class VersionSpan(NamedTuple):
    """Response tokens `[start, end)` were sampled by the weights of `version`."""

    version: int
    start: int
    end: int


class Turn(NamedTuple):
    """What was said in an episode, for reading: never encoded again."""

    role: str  # assistant, tool or user
    content: str


@dataclass(frozen=True, slots=True)
class Episode:
    """What an environment had to do with a completion."""

    holes: tuple[tuple[int, int], ...]  # [start, end) of response tokens that it wrote: read by the model, not trained
    rewards: tuple[tuple[int, float], ...]  # a sampled response token and the reward received for it; none: no reward
    turns: tuple[Turn, ...]
    failure: str = ""  # why there is no reward


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response: tokens as sampled, never decoded and encoded again."""

    key: SampleKey
    response_ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]  # [R] at the sampling temperature, one per response id; 0 in a hole
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...]  # which weights sampled which tokens, in order; together [0, R) without the holes
    text: str  # of an episode: what the model said last
    episode: Episode | None = None  # None: one turn, answered by nobody

    @property
    def sampled(self) -> list[bool]:
        """[R], False for the tokens that an environment wrote."""
        mask = [True] * len(self.response_ids)
        for start, end in self.episode.holes if self.episode else ():
            mask[start:end] = [False] * (end - start)
        return mask

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """The response without the holes: what the policy wrote."""
        return tuple(token for token, own in zip(self.response_ids, self.sampled, strict=True) if own)

    @property
    def min_policy_version(self) -> int:
        """The oldest weights that sampled a token of it."""
        return min(span.version for span in self.versions)

    @property
    def max_policy_version(self) -> int:
        """The newest weights that sampled a token of it."""
        return max(span.version for span in self.versions)

    @property
    def mean_policy_version(self) -> float:
        """Mean over its sampled tokens."""
        tokens = sum(span.end - span.start for span in self.versions)
        return sum(span.version * (span.end - span.start) for span in self.versions) / max(1, tokens)
