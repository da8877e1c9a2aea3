"""Several processes of a user's own environments beside one engine: episodes are dealt out one after another."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from raylign.rollout.environments.interfaces import Environment, Environments


class Spread:
    """An Environments over several that are alike."""

    def __init__(self, each: Sequence[Environments]) -> None:
        """The first one is ready; others may start with their first episode."""
        self._each, self._next = tuple(each), itertools.cycle(each)

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """Of the first."""
        return self._each[0].tools

    def open(self) -> Environment:
        """Of the next in turn; an episode that is played again has another."""
        return next(self._next).open()

    def taken_restarts(self) -> int:
        """Of all of them."""
        return sum(one.taken_restarts() for one in self._each)

    async def stop(self) -> None:
        """End all of them."""
        await asyncio.gather(*(one.stop() for one in self._each))
