"""The nearest known name to one that is not known. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of `known` plain names, or None when nothing is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def nearest_key(name: str, known: Iterable[str], cutoff: float = 0.7) -> str | None:
    """The most similar full dotted name among those whose last part is at least `cutoff` similar to that of `name`.

    The last part counts as much as the whole, and must be a misspelling by itself: under the right section almost
    anything resembles something (`rollout.top_p` is no `rollout.timeout_s`). Ties go to the name that comes first.
    """
    leaf = name.rsplit(".", 1)[-1]

    def last(candidate: str) -> float:
        return difflib.SequenceMatcher(None, leaf, candidate.rsplit(".", 1)[-1]).ratio()

    def score(candidate: str) -> float:
        return (difflib.SequenceMatcher(None, name, candidate).ratio() + last(candidate)) / 2

    return max((candidate for candidate in known if last(candidate) >= cutoff), key=score, default=None)
