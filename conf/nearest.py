"""The nearest known name to one that is not known. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of `known` plain names, or None when nothing is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def similarity(one: str, other: str) -> float:
    """From 0 to 1, which is equality."""
    return difflib.SequenceMatcher(None, one, other).ratio()


def nearest_keys(name: str, known: Iterable[str], cutoff: float = 0.72) -> tuple[str, ...]:
    """The full dotted name that `name` was probably meant to be; several where each would be; else none.

    The last part must be a misspelling by itself, at least `cutoff` similar: under the right section almost anything
    resembles something (`rollout.top_p` is no `rollout.timeout_s`). It counts as much as the whole. A name without a
    section may be of any: all that are equally near are returned, unless one of them has no section either.
    """
    names = list(known)
    leaf, bare = _leaf(name), "." not in name
    like = {candidate: similarity(leaf, _leaf(candidate)) for candidate in names}
    near = [candidate for candidate in names if like[candidate] >= cutoff]
    if not near:
        return ()
    if bare:
        best = max(like[candidate] for candidate in near)
        equal = [candidate for candidate in near if like[candidate] == best]
        depth = min(candidate.count(".") for candidate in equal)
        return tuple(candidate for candidate in equal if candidate.count(".") == depth)
    return (max(near, key=lambda candidate: similarity(name, candidate) + like[candidate]),)


def nearest_key(name: str, known: Iterable[str], cutoff: float = 0.72) -> str | None:
    """The first of `nearest_keys`, or None."""
    return next(iter(nearest_keys(name, known, cutoff)), None)


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]
