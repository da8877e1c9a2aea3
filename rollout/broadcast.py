"""Weights to all engines at once, by broadcast from rank 0 of the learner: one member's side of one transfer.

    learner:  weights ──packed──► buffer ──┐                   ┌──► buffer ──views──► engine, on each of its ranks
                                           └── NCCL or gloo ───┘

Both sides cut the manifest into the same buckets, so only bytes travel. The group is made for one transfer, beside
the default process group, and is left as soon as everybody has everything.

Whatever waits for another process (torch's store, the group's start, a collective) runs on a thread of its own with a
deadline on this side of it. torch's own timeouts do not hold everywhere: a client of a store whose server was stopped
waits for ever, and so does the start of an NCCL communicator. A thread that is late is abandoned with its group; it
ends when the peer's connection does.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Protocol, cast

import torch
import torch.distributed as dist
from raylign.rollout.deadline import DisposableThread, Phase
from raylign.rollout.flat_bucket import Bucket, buckets
from raylign.rollout.interfaces import TensorSpec, TransferLink
from torch import Tensor

SENDER = 0
"""The learner's rank in the group."""
RENDEZVOUS = "the rendezvous"
TRANSFER = "the transfer"


class Collectives(Protocol):
    """What torch's NCCL and gloo groups have in common, as far as it is used; torch's own stubs leave it out."""

    def allreduce(self, tensors: list[Tensor], opts: dist.AllreduceOptions) -> dist.Work: ...
    def broadcast(self, tensor: Tensor, root: int, timeout: timedelta) -> dist.Work: ...
    def abort(self) -> None: ...


class TransferGroup:
    """One member of a transfer. Every call ends within `link.timeout_s` (and deadline.GRACE_S), whatever the others do.

    Raises WeightUpdateError, and is useless afterwards; another transfer needs another group.
    """

    def __init__(self, link: TransferLink, rank: int, device: torch.device, store: dist.Store | None = None) -> None:
        """`store`: the meeting's own, where it is served in this process (`open_link`)."""
        self._link, self._rank, self._device, self._store = link, rank, device, store
        self._group: Collectives | None = None
        self._thread = DisposableThread(f"weights by broadcast, rank {rank}")

    def meet(self) -> None:
        """Meet the others; all of them are there when this returns."""
        with self._phase(RENDEZVOUS) as phase:
            phase.result(self._thread.submit(lambda: self._meet(phase)))

    def send(self, tensors: Sequence[TensorSpec], weights: Iterator[tuple[str, Tensor]]) -> None:
        """Broadcast `weights`, which are what `tensors` announced, in their order; one bucket travels while the next
        is packed. Returns when every member has everything."""
        with self._phase(TRANSFER) as phase:
            sending: Future[object] | None = None
            for bucket in buckets(tensors, self._link.bucket_bytes):
                buffer = bucket.packed(weights, self._device)
                if sending is not None:
                    phase.result(sending)
                sending = self._thread.submit(partial(self._broadcast, buffer, phase))
            if sending is not None:
                phase.result(sending)
            self._leave(phase)

    def receive(self, tensors: Sequence[TensorSpec]) -> Generator[list[tuple[str, Tensor]], None, None]:
        """What `send` sends, bucket by bucket: name and tensor. The next bucket travels while one is used.

        Close it where it is not read to its end.
        """
        with self._phase(TRANSFER) as phase:
            plan = list(buckets(tensors, self._link.bucket_bytes))

            def begin(bucket: Bucket) -> Future[Tensor]:
                buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8, device=self._device)
                if self._device.type == "cuda":  # whoever had this memory before has done with it
                    torch.cuda.current_stream(self._device).synchronize()
                return self._thread.submit(partial(self._broadcast, buffer, phase))

            coming = begin(plan[0]) if plan else None
            for index, bucket in enumerate(plan):
                assert coming is not None
                buffer = phase.result(coming)
                coming = begin(plan[index + 1]) if index + 1 < len(plan) else None
                yield bucket.unpacked(buffer)
            self._leave(phase)

    def abandon(self) -> None:
        """Leave the group as it is. Idempotent; after the end of a transfer it does nothing."""
        group, self._group, self._store = self._group, None, None
        self._thread.abandon()
        if group is not None:  # a collective under way would hold a card for ever; ending it may itself take its time
            threading.Thread(target=_ended, args=(group,), name="transfer's end", daemon=True).start()

    @contextmanager
    def _phase(self, name: str) -> Iterator[Phase]:
        try:
            yield Phase(name, self._link.timeout_s)
        except BaseException:
            self.abandon()
            raise

    def _meet(self, phase: Phase) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # a thread's own
        link = self._link
        store = self._store or dist.TCPStore(
            link.address, link.port, is_master=False, timeout=phase.for_torch, wait_for_workers=False
        )
        self._group = _group(store, self._rank, link.world_size, self._device, phase.for_torch)
        self._store = store
        self._together(phase)

    def _together(self, phase: Phase) -> None:
        """Returns when all members are here."""
        ones = torch.ones(1, dtype=torch.int64, device=self._device)
        options = dist.AllreduceOptions()
        options.timeout = phase.for_torch
        self._open.allreduce([ones], options).wait(phase.for_torch)
        if int(ones) != self._link.world_size:
            raise RuntimeError(f"{int(ones)} of {self._link.world_size} members answered")

    def _broadcast(self, buffer: Tensor, phase: Phase) -> Tensor:
        self._open.broadcast(buffer, SENDER, phase.for_torch).wait(phase.for_torch)
        return buffer

    def _leave(self, phase: Phase) -> None:
        """Nobody ends the group before everybody has everything: what still travels would be lost."""
        phase.result(self._thread.submit(lambda: self._together(phase)))
        group, self._group = self._open, None
        self._thread.submit(lambda: _ended(group))
        self._thread.end()
        self._store = None

    @property
    def _open(self) -> Collectives:
        if self._group is None:
            raise RuntimeError("the transfer's group was left")
        return self._group


def open_link(
    address: str, *, workers: int, ranks_per_worker: int, timeout_s: float, bucket_bytes: int
) -> tuple[TransferLink, dist.Store]:
    """Begin a transfer to `workers` engines: where its members meet, and the store, served here on `address` only."""
    server = socket.create_server((address, 0), backlog=workers * ranks_per_worker + 128)
    link = TransferLink(
        address, server.getsockname()[1], workers, ranks_per_worker, timeout_s=timeout_s, bucket_bytes=bucket_bytes
    )
    store = dist.TCPStore(
        address,
        link.port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=server.detach(),  # the store closes it
    )
    return link, store


def _group(store: dist.Store, rank: int, world_size: int, device: torch.device, timeout: timedelta) -> Collectives:
    if device.type != "cuda":
        return cast("Collectives", dist.ProcessGroupGloo(store, rank, world_size, timeout))
    with _waits_end_in_errors():
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return cast("Collectives", dist.ProcessGroupNCCL(store, rank, world_size, options))


@contextmanager
def _waits_end_in_errors() -> Iterator[None]:
    """While an NCCL group is made: a collective of it that is late raises where it is waited for.

    Else torch's watchdog ends the whole process, which has other work. torch reads this when the group is made.
    """
    name = "TORCH_NCCL_BLOCKING_WAIT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _ended(group: Collectives) -> None:
    """What it holds is free again; whether its end is a good one does not matter any more."""
    with suppress(RuntimeError):
        group.abort()
