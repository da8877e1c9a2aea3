"""A calculator: the model asks for sums, and is paid for the right number at the end."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

from raylign.reward.same_number import same_number

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_MAX_LENGTH, _MAX_POWER, _MAX_VALUE = 500, 1000, 1e300
_DIGITS = 12  # of a result that is no whole number: 0.1 + 0.2 is 0.3
_NUMBER = re.compile(r"(-?(?:\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+)?)(?:\s?/\s?(\d[\d,]*(?:\.\d+)?))?")
_SIGNS = str.maketrans("\u2212\u00d7\u00f7", "-*/")  # as people and models write minus, times and divided by


class Calculator:
    """Arithmetic on numbers. A row's `ground_truth` is the number that the final answer has to end with."""

    def __init__(self) -> None:
        self._truth: float | None = None

    def reset(self, ground_truth: str | None = None) -> None:
        """Raises ValueError for a row whose ground truth holds no number."""
        if ground_truth is None or (truth := _last_number(str(ground_truth))) is None:
            raise ValueError(f"the row's ground_truth is {ground_truth!r}, not a number; give one, for it is compared")
        self._truth = truth

    def calculate(self, expression: str) -> str:
        """Compute an arithmetic expression.

        Args:
            expression: numbers with + - * / // % ** and parentheses, such as "(12 + 5) * 3"
        """
        if len(expression) > _MAX_LENGTH:
            raise ValueError(f"the expression is longer than {_MAX_LENGTH} characters")
        value = _value(ast.parse(expression.strip().translate(_SIGNS), mode="eval").body)
        return str(int(value)) if float(value).is_integer() else repr(float(f"{value:.{_DIGITS}g}"))

    def get_reward(self, answer: str) -> float:
        """1 when the last number of the answer is the row's."""
        said, truth = _last_number(answer), self._truth
        assert truth is not None
        return float(said is not None and same_number(said, truth))


def _value(node: ast.expr) -> float:
    """Raises ValueError for anything but arithmetic on numbers of a sane size."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        value: float = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        value = -value if isinstance(node.op, ast.USub) else value
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > _MAX_POWER:
            raise ValueError(f"powers beyond {_MAX_POWER} are not computed")
        value = _BINARY[type(node.op)](left, right)
    else:
        raise ValueError("only numbers, + - * / // % ** and parentheses are understood")
    if isinstance(value, complex) or not abs(value) < _MAX_VALUE:
        raise ValueError("the result is too large, or no real number")
    return value


def _last_number(text: str) -> float | None:
    """None without one, and for a fraction of 0. A fraction is one number."""
    found = _NUMBER.findall(text.translate(_SIGNS))
    if not found:
        return None
    over, under = (float(part.replace(",", "") or 1) for part in found[-1])
    return over / under if under else None
