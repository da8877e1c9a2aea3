"""`data.eval` in its three forms: one set, a list of sets, or sets by name. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

DEFAULT_NAME = "held_out"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def held_out_sets(value: object) -> dict[str, str]:
    """Name of each held-out set -> file, folder or data set. Empty when there is none.

    A single one is called `held_out`, those of a list by their file name without its ending. Raises ValueError saying
    what is wrong.
    """
    if isinstance(value, str):
        return {DEFAULT_NAME: value} if value else {}
    if isinstance(value, Mapping):
        found = [(str(name), source) for name, source in value.items()]
    elif isinstance(value, list | tuple):
        found = [(PurePath(str(source)).stem, source) for source in value]
    else:
        raise ValueError("expected text, a list of texts, or a mapping of names to texts")
    for name, source in found:
        if not isinstance(source, str) or not source:
            raise ValueError(f"set {name!r} is {source!r}; expected a file, a folder or a dataset name")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a set: 1-64 of A-Z a-z 0-9 . _ - (it stands in metric names)")
    names = [name for name, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two sets are called {twice[0]!r}; name them, as in {{first: ..., second: ...}}")
    return dict(found)
