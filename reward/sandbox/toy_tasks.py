"""Small programming tasks with tests, to try the code reward on. Written for Raylign.

`python -m raylign.reward.sandbox.toy_tasks FILE` writes them as rows of data.train. `ground_truth` is an answer that
passes, which the trial before a run scores too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ASK = "Answer with one block of Python code."

_FUNCTIONS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("double", "x", "2 * x", ("double(3) == 6", "double(0) == 0", "double(-4) == -8")),
    ("add", "a, b", "a + b", ("add(2, 3) == 5", "add(-1, 1) == 0", "add(10, 20) == 30")),
    ("square", "x", "x * x", ("square(5) == 25", "square(-3) == 9", "square(0) == 0")),
    ("is_even", "n", "n % 2 == 0", ("is_even(4) is True", "is_even(7) is False", "is_even(0) is True")),
    ("largest", "numbers", "max(numbers)", ("largest([3, 9, 2]) == 9", "largest([-5, -2]) == -2")),
    ("reverse", "text", "text[::-1]", ("reverse('abc') == 'cba'", "reverse('') == ''", "reverse('xy') == 'yx'")),
    ("count_words", "text", "len(text.split())", ("count_words('a b c') == 3", "count_words('  one ') == 1")),
    ("first", "items", "items[0]", ("first([7, 8]) == 7", "first('xyz') == 'x'")),
    ("average", "numbers", "sum(numbers) / len(numbers)", ("average([1, 2, 3]) == 2", "average([4, 5]) == 4.5")),
    ("unique", "items", "sorted(set(items))", ("unique([3, 1, 3]) == [1, 3]", "unique([]) == []")),
)
_PROGRAMS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("reads two integers on one line and prints their sum", "a, b = map(int, input().split())\nprint(a + b)",
     (("1 2", "3"), ("-4 9", "5"), ("100 250", "350"))),
    ("reads a line and prints it in capital letters", "print(input().upper())",
     (("hello", "HELLO"), ("Ray 2", "RAY 2"))),
)  # fmt: skip


def toy_tasks() -> Iterator[dict[str, Any]]:
    """Rows with `prompt`, `tests` and `ground_truth`."""
    for name, given, result, tests in _FUNCTIONS:
        head = f"def {name}({given}):"
        yield {
            "prompt": f"Write a Python function `{name}({given})` that returns {_meaning(name)}. {_ASK}",
            "tests": [f"assert {test}" for test in tests],
            "ground_truth": f"```python\n{head}\n    return {result}\n```",
        }
    for meaning, code, pairs in _PROGRAMS:
        yield {
            "prompt": f"Write a Python program that {meaning}. {_ASK}",
            "tests": json.dumps([{"input": given, "output": wanted} for given, wanted in pairs]),
            "ground_truth": f"```python\n{code}\n```",
        }


def _meaning(name: str) -> str:
    return {
        "double": "twice x", "add": "the sum of a and b", "square": "x times x", "is_even": "whether n is even",
        "largest": "the largest of the numbers", "reverse": "the text backwards",
        "count_words": "how many words the text has", "first": "the first of the items",
        "average": "the mean of the numbers", "unique": "the different items, sorted, as a list",
    }[name]  # fmt: skip


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("".join(f"{json.dumps(row)}\n" for row in toy_tasks()))
