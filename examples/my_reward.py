"""A reward function of one's own: answers close to a wished length that end by themselves are good."""

from __future__ import annotations

from collections.abc import Sequence


def close_to_wish(
    prompts: Sequence[object], completions: Sequence[object], length: Sequence[str], **_: object
) -> list[float]:
    """1 for an answer of `length` characters, a column of the data; falling to 0 at none and at twice as many."""
    return [max(0.0, 1.0 - abs(len(_text(c)) - int(w)) / int(w)) for c, w in zip(completions, length, strict=True)]


def _text(completion: object) -> str:
    """Plain text, or the words of a conversation's answer."""
    return completion if isinstance(completion, str) else "".join(turn["content"] for turn in completion)  # type: ignore[attr-defined]
