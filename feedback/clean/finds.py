"""What a pattern has caught, with what stands around it, and how much of it is real."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_BEFORE, _AFTER = 60, 24


@dataclass(frozen=True, slots=True)
class Find:
    """A candidate in its text."""

    text: str
    before: str  # up to 60 characters
    after: str  # up to 24
    regions: tuple[str, ...] = ()  # countries (ISO 3166) of the log, for phone numbers

    @staticmethod
    def at(text: str, start: int, end: int, regions: tuple[str, ...] = ()) -> Find:
        """The candidate that stands from `start` to `end`."""
        return Find(text[start:end], text[max(0, start - _BEFORE) : start], text[end : end + _AFTER], regions)

    @property
    def in_arithmetic(self) -> bool:
        """Whether it is an operand, a decimal's end or the beginning of one."""
        return _OPERATOR_BEFORE.search(self.before) is not None or _OPERATOR_AFTER.match(self.after) is not None


Real = Callable[[Find], int]
"""How many characters of a candidate are what it looks like: 0 is none of it."""

_OPERATOR_BEFORE = re.compile(r"(?:[=*×÷^%\\$€£¥]\s*|[#,]|[0-9)\]]\s*[+\-−/]\s*)$")
_OPERATOR_AFTER = re.compile(r"\s*(?:[*×÷^%=\\]|[+\-−/]\s*[0-9(\[])|[,.][0-9]|[eE][+\-]?[0-9]")


def whole(condition: Callable[[Find], bool]) -> Real:
    """All of a candidate, or nothing."""
    return lambda find: len(find.text) if condition(find) else 0
