"""Whether two numbers are the same for a reward. Pure: standard library only."""

from __future__ import annotations

import math


def same_number(said: float, truth: float) -> bool:
    """Whole numbers by their value; others may differ by a millionth, for they are written rounded."""
    if said.is_integer() and truth.is_integer():
        return said == truth
    return math.isclose(said, truth, rel_tol=1e-6, abs_tol=1e-9)
