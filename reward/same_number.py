"""Whether two numbers are the same for a reward. Pure: standard library only."""

from __future__ import annotations

import math


def same_number(said: float, truth: float) -> bool:
    """A whole truth by its value, up to the rounding of a computation (1e-6 absolute, less than any rounded figure
    differs by); another may differ by a millionth of itself, for it is written rounded. Never for no finite number."""
    if not (math.isfinite(said) and math.isfinite(truth)):
        return False
    if truth.is_integer():
        return said == truth if said.is_integer() else math.isclose(said, truth, rel_tol=0.0, abs_tol=1e-6)
    return math.isclose(said, truth, rel_tol=1e-6, abs_tol=1e-9)
