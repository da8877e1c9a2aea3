"""How a user's own code reaches the ranks: inside what they are sent, so that no machine needs the file."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from ray import cloudpickle


def send_by_value(modules: Iterable[ModuleType]) -> None:
    """Objects of these modules carry their classes and functions along from now on, to every worker of this driver."""
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
