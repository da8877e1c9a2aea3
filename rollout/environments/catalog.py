"""Which environment a name means: a shipped one, or a class of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raylign.conf.nearest import nearest
from raylign.rollout.environments.interfaces import EnvironmentRefused
from raylign.rollout.environments.shipped.calculator import Calculator
from raylign.rollout.environments.shipped.search import Search
from raylign.rollout.environments.shipped.shop import Shop

SHIPPED: Mapping[str, Callable[..., object]] = {"calculator": Calculator, "search": Search, "shop": Shop}


def shipped(name: str) -> Callable[..., object]:
    """The class of a shipped environment. Raises EnvironmentRefused naming those there are."""
    if name not in SHIPPED:
        guess = nearest(name, tuple(SHIPPED))
        hint = f"did you mean {guess}? " if guess else ""
        raise EnvironmentRefused(
            f"no environment has this name; {hint}There is {', '.join(SHIPPED)}, your own as FILE.py:CLASS, and a "
            "server as openenv:URL or nemo_gym:URL"
        )
    return SHIPPED[name]
