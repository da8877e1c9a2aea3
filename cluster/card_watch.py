"""The cards of every node that the run uses, in the run's metrics: one of its actors on each node reads them.

W&B's own system metrics are of the driver's node alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cache
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from raylign.cluster.cards import CardMeter, CardReader, CardReading, NvmlReader

ANSWER_S = 0.2
"""For all answers together; who computes answers afterwards, and is heard in the next step."""


class CardWatch:
    """Asks one actor of each node; when that one has died, another. Never waits longer than ANSWER_S."""

    def __init__(self, reader: Callable[[], CardReader] = NvmlReader) -> None:
        self._reader = reader
        self._placing: dict[ray.ObjectRef[Any], ActorHandle] = {}  # asked where they are
        self._actors: dict[str, list[ActorHandle]] = {}  # by node; the first one reads
        self._asked: dict[str, ray.ObjectRef[Any]] = {}  # what it has not answered yet

    def add(self, actors: Iterable[ActorHandle]) -> None:
        """Actors of the run that are there or start; each may be the one that reads."""
        for actor in actors:
            self._placing[actor.__ray_call__.remote(_address)] = actor

    def figures(self) -> dict[str, float]:
        """By card, what the nodes have said since the last call; nothing of a node that has not answered."""
        for node, actors in self._actors.items():
            if actors and node not in self._asked:
                self._asked[node] = actors[0].__ray_call__.remote(_taken, self._reader)
        open_calls = [*self._placing, *self._asked.values()]
        if not open_calls:
            return {}
        answered = set(ray.wait(open_calls, num_returns=len(open_calls), timeout=ANSWER_S)[0])
        for ref in [ref for ref in self._placing if ref in answered]:
            self._place(ref)
        found: dict[str, float] = {}
        for node in [node for node, ref in self._asked.items() if ref in answered]:
            found |= self._heard(node)
        return found

    def _place(self, ref: ray.ObjectRef[Any]) -> None:
        actor = self._placing.pop(ref)
        try:
            node = ray.get(ref, timeout=ANSWER_S)
        except RayError:
            return  # it did not live to say
        self._actors.setdefault(node, []).append(actor)

    def _heard(self, node: str) -> dict[str, float]:
        try:
            cards: list[CardReading] = ray.get(self._asked.pop(node), timeout=ANSWER_S)
        except RayError:
            self._actors[node].pop(0)  # the next one reads from now on
            return {}
        return {
            f"card/{node}/{index}/{name}": value
            for index, card in enumerate(cards)
            for name, value in asdict(card).items()
            if value is not None
        }


def _address(_: object) -> str:
    """In an actor: its node."""
    return ray.util.get_node_ip_address()


def _taken(_: object, reader: Callable[[], CardReader]) -> list[CardReading]:
    """In an actor: what its meter has; the first call starts it."""
    return _meter(reader).taken()


@cache
def _meter(reader: Callable[[], CardReader]) -> CardMeter:
    """This process's own."""
    return CardMeter(reader)
