"""Which actor reads the cards of a node, and what becomes of the figures when it is late or dead. Ray is played."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError
from raylign.cluster import card_watch
from raylign.cluster.card_watch import CardWatch
from raylign.cluster.cards import CardReading
from raylign.records.glossary import describe


class Actor:
    """Answers at once, unless it is busy or dead."""

    def __init__(self, node: str) -> None:
        self.node, self.busy, self.dead, self.reads = node, False, False, 0
        self.__ray_call__ = SimpleNamespace(remote=self._remote)

    def _remote(self, call: object, *args: object) -> tuple[Actor, object]:
        self.reads += bool(args)
        return (self, call)

    def answer(self, call: object) -> object:
        if self.dead:
            raise RayActorError
        return self.node if call is card_watch._address else [CardReading(0.5, 10.0 * self.reads, None, None)]


@pytest.fixture(autouse=True)
def _played(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(refs, *, num_returns, timeout):
        return [ref for ref in refs if ref[0].dead or not ref[0].busy], []

    monkeypatch.setattr(card_watch.ray, "wait", wait)
    monkeypatch.setattr(card_watch.ray, "get", lambda ref, timeout: ref[0].answer(ref[1]))


def test_one_actor_of_each_node_reads_and_the_next_one_when_it_has_died() -> None:
    first, second, other = Actor("10.0.0.1"), Actor("10.0.0.1"), Actor("10.0.0.2")
    watch = CardWatch()
    assert watch.figures() == {}
    watch.add([first, second, other])
    assert watch.figures() == {}, "now it knows where they are"
    figures = watch.figures()
    assert figures == {
        "card/10.0.0.1/0/utilization": 0.5,
        "card/10.0.0.1/0/memory_gb": 10.0,
        "card/10.0.0.2/0/utilization": 0.5,
        "card/10.0.0.2/0/memory_gb": 10.0,
    }
    assert all(describe(name) for name in figures)
    assert (first.reads, second.reads, other.reads) == (1, 0, 1)
    first.dead = True
    assert {name.split("/")[1] for name in watch.figures()} == {"10.0.0.2"}
    assert {name.split("/")[1] for name in watch.figures()} == {"10.0.0.1", "10.0.0.2"} and second.reads == 1


def test_who_computes_is_asked_once_and_heard_later_and_who_died_unplaced_is_forgotten() -> None:
    busy, gone = Actor("10.0.0.1"), Actor("10.0.0.9")
    gone.dead = True
    watch = CardWatch()
    watch.add([busy, gone])
    watch.figures()
    busy.busy = True
    assert watch.figures() == watch.figures() == {} and busy.reads == 1
    busy.busy = False
    assert watch.figures()["card/10.0.0.1/0/utilization"] == 0.5 and busy.reads == 1
