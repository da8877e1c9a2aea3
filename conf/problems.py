"""A problem with a configuration, and the settings it is about. Standard library only."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """One sentence naming key, value and fix."""

    keys: tuple[str, ...]  # settings whose change would answer it, to avoid telling a consequence beside its cause
    sentence: str
    missing: str = ""  # the file or folder that is not there, when it is about one: another machine may have it
