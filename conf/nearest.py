"""The nearest known name to one that is not known. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of `known` plain names, or None when nothing is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def nearest_key(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The most similar full dotted name.

    The last part counts as much as the whole: `lr` should find `policy.optim.lr`, and `policy.lr` too. Ties go to the
    name that comes first.
    """
    leaf = name.rsplit(".", 1)[-1]

    def score(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, leaf, candidate.rsplit(".", 1)[-1]).ratio()
        return (whole + last) / 2

    best = max(known, key=score, default=None)
    return best if best is not None and score(best) >= cutoff else None
