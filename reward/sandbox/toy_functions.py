"""Programming tasks: small functions in families that differ by a number. Written for Raylign.

`python -m raylign.reward.sandbox.toy_functions FILE` writes them as rows of data.train. Tests are made by running the
right answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ASK = "Answer with one block of Python code."
_NUMBERS = ("9", "1", "30", "-4", "-5", "24", "{k}", "{k} + 1")
_TEXTS = (  # of letters alone: a program that counts no other characters is right, too
    "'raylign'", "'a'", "'smallandlargeone'", "''", "'x' * {k}", "'x' * ({k} + 1)", "'abcdefghijklm'[1:{k}]",
)  # fmt: skip
_LISTS = ("[5, 3, 8, 1, 9, 2, 7]", "[4, 6]", "list(range(20))", "list(range({k}))")

_FAMILIES: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    ("add_{k}", "x", "x plus {k}", "x + {k}", _NUMBERS),
    ("times_{k}", "x", "x times {k}", "x * {k}", _NUMBERS),
    ("less_{k}", "x", "x minus {k}", "x - {k}", _NUMBERS),
    ("power_{k}", "x", "x to the power of {k}", "x ** {k}", _NUMBERS),
    ("rest_{k}", "x", "the rest of x divided by {k}", "x % {k}", _NUMBERS),
    ("is_over_{k}", "x", "whether x is greater than {k}", "x > {k}", _NUMBERS),
    ("at_most_{k}", "x", "the smaller of x and {k}", "min(x, {k})", _NUMBERS),
    ("first_{k}", "items", "the first {k} of the items", "items[:{k}]", _LISTS),
    ("without_{k}", "items", "the items without the first {k}", "items[{k}:]", _LISTS),
    ("last_{k}", "text", "the last {k} letters of the text", "text[-{k}:]", _TEXTS),
    ("repeat_{k}", "text", "the text {k} times in a row", "text * {k}", _TEXTS),
    ("longer_than_{k}", "text", "whether the text is longer than {k} letters", "len(text) > {k}", _TEXTS),
)
"""Name, argument, what it returns, the code of that, and what the tests call it with."""
_FROM, _TO = 2, 14


@dataclass(frozen=True, slots=True)
class ToyFunction:
    """One task."""

    name: str
    argument: str
    meaning: str
    expression: str
    inputs: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What is asked."""
        return f"Write a Python function `{self.name}({self.argument})` that returns {self.meaning}. {_ASK}"

    def answer(self, body: str) -> str:
        """An answer with the line `body`."""
        return f"```python\ndef {self.name}({self.argument}):\n    {body}\n```"

    @property
    def right(self) -> str:
        """The answer that passes."""
        return self.answer(f"return {self.expression}")

    def row(self) -> dict[str, Any]:
        """With `prompt`, `tests` and `ground_truth`."""
        made = eval(f"lambda {self.argument}: {self.expression}", {})  # of the table above
        tests = [f"assert {self.name}({given}) == {made(eval(given, {}))!r}" for given in self.inputs]
        return {"id": self.name, "prompt": self.prompt, "tests": tests, "ground_truth": self.right}


def toy_functions() -> Iterator[ToyFunction]:
    """Every family with every number, family by family."""
    for name, argument, meaning, expression, inputs in _FAMILIES:
        for k in range(_FROM, _TO):
            name_k, meaning_k, expression_k = (text.format(k=k) for text in (name, meaning, expression))
            yield ToyFunction(name_k, argument, meaning_k, expression_k, tuple(given.format(k=k) for given in inputs))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("give one argument, the file to write")
    Path(sys.argv[1]).write_text("".join(f"{json.dumps(task.row())}\n" for task in toy_functions()))
