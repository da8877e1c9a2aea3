"""Where ranks meet: a port that nothing else is given, and a store that is there before its ranks."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from raylign.trainer.engine import rendezvous
from raylign.trainer.engine.rendezvous import Rendezvous

HERE = "127.0.0.1"


def meet(port: int, *, hosted: bool) -> bytes:
    """What rank 1, which comes first, reads of rank 0."""
    ranks = [Rendezvous(rank, 2, HERE, port, 30.0, hosted) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        late = threads.submit(rendezvous._store, ranks[1])
        store = rendezvous._store(ranks[0])
        store.set("said", "by rank 0")
        return late.result(30).get("said")


def test_the_port_of_a_meeting_is_taken_from_the_moment_it_is_named() -> None:
    port = rendezvous.listen(HERE)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HERE, port))
    assert meet(port, hosted=False) == b"by rank 0"
    assert port not in rendezvous._listening


def test_a_port_that_the_caller_chose_is_listened_at_by_rank_0() -> None:
    with socket.create_server((HERE, 0)) as there:
        port = there.getsockname()[1]
    assert meet(port, hosted=False) == b"by rank 0"


def test_ranks_meet_at_the_store_of_a_process_that_is_none_of_them() -> None:
    store = rendezvous.open_store(HERE)
    assert meet(store.port, hosted=True) == b"by rank 0"
    assert store.get("said") == b"by rank 0"
