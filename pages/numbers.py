"""Numbers for people: short, with a true minus sign, and axis ticks at round values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

MINUS = "\u2212"
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k"))


def short(value: float | None, digits: int = 3) -> str:
    """About `digits` significant digits: `0.0123`, `1,234`, `12.3k`; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    size = abs(value)
    for factor, suffix in _SUFFIXES:
        if size >= factor:
            divisor = 1e3 if suffix == "k" else factor
            return short(value / divisor, digits) + suffix
    if size >= 1000:
        text = f"{size:,.0f}"
    elif size == 0:
        text = "0"
    elif size < 1e-3:
        mantissa, exponent = f"{size:.{max(0, digits - 2)}e}".split("e")
        text = f"{mantissa}e{MINUS}{-int(exponent)}"
    else:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{size:.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if decimals else text
    return (MINUS if value < 0 and text != "0" else "") + text


def aligned(values: Sequence[float | None]) -> list[str]:
    """Numbers to be compared: `short` of the largest decides the decimals of all."""
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v)]
    largest = max(sizes, default=0.0)
    if not 1e-3 <= largest < 1000:
        return [short(v) for v in values]
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    return [short(v) if v is None or not math.isfinite(v) else _fixed(v, decimals) for v in values]


def _fixed(value: float, decimals: int) -> str:
    text = f"{abs(value):.{decimals}f}"
    return (MINUS if value < 0 and float(text) else "") + text


def percent(share: float) -> str:
    """`84 %`; one decimal only near the ends, where it matters."""
    value = 100 * share
    decimals = 1 if 0 < value < 1 or 99 < value < 100 else 0
    return f"{value:.{decimals}f}\u00a0%"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) within [low, high], at most `most` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [n * step for n in range(first, last + 1)]
    return [low]


def step_ticks(first: int, last: int, most: int) -> list[int]:
    """As `ticks`, whole steps only."""
    return sorted({int(t) for t in ticks(first, last, most) if float(t).is_integer()})


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels with the same number of decimals, as an axis needs."""
    size = max((abs(v) for v in values), default=0.0)
    if size >= 1e4 or (0 < size < 1e-3):
        attempts = ([short(v, digits) for v in values] for digits in (2, 3, 4, 6))
        return next((labels for labels in attempts if len(set(labels)) == len(labels)), [f"{v:.15g}" for v in values])
    gap = min((b - a for a, b in pairwise(values)), default=size or 1.0)
    exponent = math.floor(math.log10(gap) + 1e-9)
    decimals = max(0, -exponent)
    if abs(gap / 10.0**exponent - 2.5) < 1e-6:
        decimals += 1 if exponent <= 0 else 0
    return [f"{v:,.{decimals}f}".replace("-", MINUS) for v in values]
