"""Serves an answer's code to the tests: defines what it defines, and does what it is asked to.

In the sandbox. Everything here shares a process with that code and must be taken for its own.
"""

from __future__ import annotations

import operator
import sys
import types
from contextlib import suppress
from typing import Any

from raylign.reward.sandbox.inside.link import Link, LinkEnded

MOST_BYTES = 1 << 26


def main(argument: dict[str, str]) -> int:
    """Until the tests are done. `argument`: the answer's text as `code`."""
    here = sys.modules["answer"] = types.ModuleType("answer")

    def load() -> None:
        exec(compile(argument["code"], "answer.py", "exec"), here.__dict__)

    def find(name: str) -> Any:
        return here.__dict__[name]

    def call(function: Any, *given: Any, **named: Any) -> Any:
        return function(*given, **named)

    operations: dict[str, Any] = {
        "load": load, "find": find, "getattr": getattr, "setattr": setattr, "__call__": call, "__len__": len,
        "__iter__": iter, "__next__": next, "__contains__": operator.contains, "__getitem__": operator.getitem,
        "__setitem__": operator.setitem, "__delitem__": operator.delitem, "__str__": str, "__repr__": repr,
        "__bool__": bool, "__eq__": operator.eq, "__enter__": lambda one: one.__enter__(),
        "__exit__": lambda one, *why: one.__exit__(None, None, None),
    }  # fmt: skip
    with suppress(LinkEnded):
        Link(3, 4, operations, MOST_BYTES).serve()
    return 0
