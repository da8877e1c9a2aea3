"""A transfer by broadcast among processes of which one is stopped or killed: the others end in time and begin anew.

Light processes without engines, so that every phase and every member has its turn; runs with real engines and learners
are in test_broadcast.py.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest
import torch
from raylign.rollout.broadcast import RENDEZVOUS, TRANSFER, TransferGroup, open_link
from raylign.rollout.fingerprint import tensor_digest
from raylign.rollout.interfaces import TensorSpec, TransferLink, WeightUpdateError
from torch import Tensor

pytestmark = pytest.mark.system

CPU = torch.device("cpu")
SPECS = [TensorSpec(f"w{i}", (128, 128), "float32", "") for i in range(24)]
BUCKET_BYTES = 2 * 128 * 128 * 4
HASTY_S = 3.0
"""Deadline of a transfer in which somebody is lost."""
PATIENCE_S = 60.0
"""Of the test for an answer; without deadlines none would come."""
ARRIVED = "arrived"


def _value(index: int) -> Tensor:
    return torch.randn(128, 128, generator=torch.Generator().manual_seed(index))


def _hit(fault: tuple[str, int], phase: str) -> None:
    """This process is stopped or killed where it was told to be."""
    if fault[0] == phase:
        os.kill(os.getpid(), fault[1])


def _weights(fault: tuple[str, int]) -> Iterator[tuple[str, Tensor]]:
    for index, spec in enumerate(SPECS):
        if index == 11:
            _hit(fault, "half-way")
        yield spec.name, _value(index)


def _send(link: TransferLink, store: object, fault: tuple[str, int]) -> str:
    group = TransferGroup(link, 0, CPU, store)
    try:
        group.meet()
        _hit(fault, "joined")
        group.send(SPECS, _weights(fault))
    except WeightUpdateError as error:
        return str(error)
    return ARRIVED


def _receive(link: TransferLink, fault: tuple[str, int]) -> str:
    group = TransferGroup(link, link.first_rank, CPU)
    found: dict[str, str] = {}
    try:
        group.meet()
        _hit(fault, "joined")
        for tensors in group.receive(SPECS):
            if len(found) == 10:
                _hit(fault, "half-way")
            found |= {name: tensor_digest(tensor) for name, tensor in tensors}
    except WeightUpdateError as error:
        return str(error)
    right = all(found[spec.name] == tensor_digest(_value(i)) for i, spec in enumerate(SPECS))
    return ARRIVED if right else "other weights"


def _member(pipe: Connection) -> None:
    """Takes part in one transfer after another: a link to receive by, or how many to send to."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    while (task := pipe.recv()) is not None:
        given, fault, hasty = task
        if isinstance(given, int):
            link, store = _open(given, HASTY_S if hasty else PATIENCE_S)
            pipe.send(link)
            _hit(fault, "rendezvous")
            pipe.send(_send(link, store, fault))
        else:
            _hit(fault, "rendezvous")
            pipe.send(_receive(given, fault))


def _open(workers: int, timeout_s: float) -> tuple[TransferLink, object]:
    return open_link("127.0.0.1", workers=workers, ranks_per_worker=1, timeout_s=timeout_s, bucket_bytes=BUCKET_BYTES)


class Member:
    """One such process, from the test's side."""

    def __init__(self, context: multiprocessing.context.BaseContext) -> None:
        self._pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_member, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, given: int | TransferLink, fault: tuple[str, int], *, hasty: bool) -> None:
        self._pipe.send((given, fault, hasty))

    def answer(self) -> object:
        assert self._pipe.poll(PATIENCE_S), "no answer: a deadline did not hold"
        return self._pipe.recv()


@pytest.fixture(scope="module")
def context() -> multiprocessing.context.BaseContext:
    """Processes that begin with torch already imported."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["raylign.rollout.broadcast"])
    return made


@pytest.fixture
def members(context: multiprocessing.context.BaseContext) -> Iterator[list[Member]]:
    made = [Member(context) for _ in range(3)]
    yield made
    for member in made:
        member.process.kill()  # a stopped one too
        member.process.join(10)


def _transfer(members: list[Member], faulty: Member | None = None, fault: tuple[str, int] = ("", 0)) -> list[object]:
    """One transfer from the first to the others; what each says that is not `faulty`."""
    sender, *receivers = members
    hasty = faulty is not None
    sender.begin(len(receivers), fault if sender is faulty else ("", 0), hasty=hasty)
    link = sender.answer()
    assert isinstance(link, TransferLink)
    for index, receiver in enumerate(receivers):
        receiver.begin(link.of(index), fault if receiver is faulty else ("", 0), hasty=hasty)
    return [member.answer() for member in members if member is not faulty]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("phase", ["rendezvous", "joined", "half-way"])
@pytest.mark.parametrize("who", [0, 1], ids=["sender", "receiver"])
def test_the_others_end_in_time_and_the_next_transfer_is_whole(
    members: list[Member], who: int, phase: str, how: int
) -> None:
    said = _transfer(members, members[who], (phase, how))
    named = RENDEZVOUS if phase == "rendezvous" else TRANSFER
    assert all(str(answer).startswith(named) for answer in said), said
    left = [member for index, member in enumerate(members) if index != who]
    assert _transfer(left) == [ARRIVED] * 2


def test_undisturbed_everything_arrives_and_a_group_is_left_for_the_next(members: list[Member]) -> None:
    for _ in range(3):
        assert _transfer(members) == [ARRIVED] * 3
