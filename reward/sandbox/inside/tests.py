"""Runs a row's tests against an answer that lives in another sandbox, and says how each of them ended.

In a sandbox of its own. It never runs code of the answer's: what the tests call are handles.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from raylign.reward.sandbox.inside.link import Link

PASSED = ""
"""How a test ended. Otherwise: the name of what it raised."""
NOTHING_CHECKED = "NothingChecked"
ENDED = "Ended"


def main(argument: dict[str, Any]) -> int:
    """Writes one line a test to standard output as soon as it has ended. `argument`: `tests`, `names`, `most_bytes`."""
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # a test may print
    link = Link(3, 4, {"__call__": lambda function, *given, **named: function(*given, **named)}, argument["most_bytes"])
    with result:
        for ended in _Run(link, argument["names"]).run(argument["tests"]):
            result.write(f"{json.dumps(ended)}\n")
            result.flush()
    return 0


class _Run:
    def __init__(self, link: Link, names: list[str]) -> None:
        self._link, self._names, self._reached = link, names, 0
        self._namespace: dict[str, Any] = {"__name__": "tests", "_raylign_reached": self._count}

    def run(self, tests: list[list[Any]]) -> Iterator[str]:
        """How each ended. A pair is a text, and whether it is a test: else it prepares those that follow."""
        broken = self._try(self._define)
        for text, counts in tests:
            ended = broken or self._try(partial(self._one, text, counts))
            if counts:
                yield ended

    def _define(self) -> None:
        self._link.ask("load")
        for name in self._names:
            try:
                self._namespace[name] = self._link.ask("find", name)
            except KeyError:
                continue  # a test that uses it raises NameError

    def _one(self, text: str, counts: bool) -> None:
        self._reached = 0
        exec(compile(text, "tests.py", "exec"), self._namespace)
        if counts and not self._reached:
            raise _NothingChecked

    def _try(self, do: Callable[[], None]) -> str:
        how = ENDED if self._link.ended else PASSED
        if not self._link.ended:
            try:
                do()
            except BaseException as error:
                how = NOTHING_CHECKED if isinstance(error, _NothingChecked) else type(error).__name__ or "?"
        return ENDED if self._link.ended else how  # a test may have caught the answer's end

    def _count(self) -> None:
        self._reached += 1


class _NothingChecked(Exception):
    pass
