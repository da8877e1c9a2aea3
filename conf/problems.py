"""A problem with a configuration, the settings it is about, and which of several are consequences of the others.

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """One sentence naming key, value and fix.

    `section.*` among settings: which settings of the section were given at all.
    """

    keys: tuple[str, ...]  # settings it is about: it remains until one of them changes
    sentence: str
    missing: str = ""  # the file or folder that is not there, when it is about one: another machine may have it
    relies_on: tuple[str, ...] = ()  # further settings it is concluded from
    meant: tuple[str, ...] = ()  # settings that keep another value because of it: what a misspelt key was meant to be


def root_problems(*stages: Sequence[Problem]) -> list[Problem]:
    """The problems that do not follow from another one, in their order.

    Causes are problems of an earlier stage (a value that cannot be read, before one out of range) and, within a stage,
    problems of a single setting before those of a combination. A problem follows from a cause when it is about, or
    relies on, a setting of the cause.
    """
    roots: list[Problem] = []
    for stage in stages:
        earlier = list(roots)
        single = [p for p in stage if len({*p.keys, *p.relies_on}) <= 1]
        for problem in stage:
            causes = earlier if problem in single else [*earlier, *single]
            if not any(_follows(problem, cause) for cause in causes):
                roots.append(problem)
    return roots


def about_its_settings(sentence: str, known: Collection[str]) -> Problem:
    """A problem given as a sentence only: it is about the settings of `known` that the sentence names."""
    return Problem(settings_in(sentence, known), sentence)


def settings_in(sentence: str, known: Collection[str]) -> tuple[str, ...]:
    """The settings of `known` that a sentence names, in its order."""
    words = re.findall(r"[a-z_]\w*(?:\.\w+)*", sentence)
    return tuple(dict.fromkeys(word for word in words if word in known))


def _follows(problem: Problem, cause: Problem) -> bool:
    return any(
        _covers(at_fault, needed)
        for at_fault in (*cause.keys, *cause.meant)
        for needed in (*problem.keys, *problem.relies_on)
    )


def _covers(at_fault: str, needed: str) -> bool:
    """True for the same setting, for a section at fault and what is in it, and for a list and its element at fault."""
    return (
        at_fault == needed or needed.startswith((f"{at_fault}.", f"{at_fault}[")) or at_fault.startswith(f"{needed}[")
    )
