"""The forward passes of a reward model: whole in this process, or in parts over processes of its own.

    replica ──token ids of rank r──► rank r: ZeRO-3 without an optimizer ──scores──► replica

The ranks of a replica are its children, on its node, a card each. They gather each layer together, so all make the same
number of passes; a replica that loses one has lost its model.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch
from raylign.conf.errors import UserError
from raylign.conf.schema import Device, Precision
from raylign.data.types import TokenBatch
from raylign.reward.interfaces import ModelLost
from raylign.trainer.engine.rendezvous import Rendezvous, open_store
from raylign.trainer.engine.sharded import ShardedEngine
from raylign.trainer.models.loading import check_on_card, load_scalar_model, model_skeleton
from raylign.trainer.models.scalar_head import ScalarModel, last_states
from torch import Tensor
from transformers import PretrainedConfig

TIMEOUT_S = 1800.0
"""Of loading, and of an answer. The pool ends a replica that is late long before (reward/pool.py)."""
_LOOPBACK = "127.0.0.1"

Batch = Sequence[Sequence[int]]
"""Sequences of one forward pass."""


class Forward(Protocol):
    """A reward model's ranks."""

    @property
    def num_ranks(self) -> int: ...
    @property
    def config(self) -> PretrainedConfig: ...
    @property
    def head(self) -> Tensor:
        """The trained head, `[H]` float32 on the CPU."""
        ...

    def ask(self, batches: Sequence[Sequence[Batch]], *, features: bool) -> list[list[Tensor]]:
        """Rank r looks at `batches[r]`: each batch's scores `[S]`, or the states before the head, `[S, H]`; float32."""
        ...


class OwnForward:
    """A whole model in this process, or one rank's part of one, whose passes are then collective."""

    num_ranks = 1

    def __init__(self, model: ScalarModel, device: torch.device) -> None:
        self._model, self._device = model, device

    @property
    def config(self) -> PretrainedConfig:
        """Of the model."""
        config: PretrainedConfig = self._model.hf.config
        return config

    @property
    def head(self) -> Tensor:
        """The trained head. Of a whole model."""
        weight = self._model.hf.score.weight
        assert isinstance(weight, Tensor)
        return weight.detach()[0].float().cpu()

    @torch.no_grad()
    def ask(self, batches: Sequence[Sequence[Batch]], *, features: bool) -> list[list[Tensor]]:
        """See Forward."""
        return [[self._one(batch, features=features) for batch in own] for own in batches]

    def _one(self, batch: Batch, *, features: bool) -> Tensor:
        made = TokenBatch.from_sequences(batch, [[False] * len(ids) for ids in batch])
        tokens = TokenBatch(*(t.to(self._device) for t in (made.input_ids, made.cu_seqlens, made.response_mask)))
        found = self._model.last_hidden(tokens) if features else last_states(self._model(tokens), tokens)
        return found.float().cpu()


@dataclass(frozen=True, slots=True)
class _Part:
    """What one rank is told at its start."""

    folder: str
    precision: Precision
    device: Device
    meeting: Rendezvous
    card: str  # as CUDA_VISIBLE_DEVICES names it
    threads: int


class ShardedForward:
    """A model whose ranks hold parts of it."""

    def __init__(
        self, folder: str, *, precision: Precision, device: Device, ranks: int, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Raises ModelLoadError as load_scalar_model, and ModelLost."""
        self.num_ranks, self._timeout_s = ranks, timeout_s
        self.config: PretrainedConfig = model_skeleton(folder, scalar=True).config
        cards = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
        cards += [str(len(cards) + i) for i in range(ranks - len(cards))]
        self._store = open_store(_LOOPBACK)  # lives as long as the ranks, which ask it for each other
        port, threads = self._store.port, max(1, torch.get_num_threads() // ranks)
        context = multiprocessing.get_context("spawn")  # a fork would share this process's threads and locks
        self._pipes: list[Connection[Any, Any]] = []
        self.processes = []
        for rank in range(ranks):
            meeting = Rendezvous(rank, ranks, _LOOPBACK, port, timeout_s, hosted=True)
            here, there = context.Pipe()
            part = _Part(folder, precision, device, meeting, cards[rank], threads)
            process = context.Process(target=_rank, args=(there, part), name=f"part {rank}", daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self.processes.append(process)
        self.head = torch.from_numpy(self._answers()[0])

    def ask(self, batches: Sequence[Sequence[Batch]], *, features: bool) -> list[list[Tensor]]:
        """See Forward. Raises ModelLost, after which nothing can be asked."""
        rounds = max(len(own) for own in batches)
        filler = next([own[0][0][:1]] for own in batches if own)  # one token, for ranks that have had theirs
        for rank, own in enumerate(batches):
            self._send(rank, ([*own, *[filler] * (rounds - len(own))], features))
        return [
            [torch.from_numpy(found) for found in answer[: len(own)]]
            for answer, own in zip(self._answers(), batches, strict=True)
        ]

    def stop(self) -> None:
        """End the ranks. Idempotent."""
        for process, pipe in zip(self.processes, self._pipes, strict=True):
            process.kill()
            pipe.close()

    def _send(self, rank: int, question: tuple[Sequence[Batch], bool]) -> None:
        try:
            self._pipes[rank].send(question)
        except OSError as error:
            self.stop()
            raise ModelLost(f"part {rank} of the reward model is gone ({error})") from error

    def _answers(self) -> list[Any]:
        """One of each rank, in order."""
        found: dict[int, Any] = {}
        until = time.monotonic() + self._timeout_s
        try:
            while left := [i for i in range(self.num_ranks) if i not in found]:
                ready = wait([self._pipes[i] for i in left], max(0.0, until - time.monotonic()))
                if not ready:
                    raise ModelLost(f"part {left[0]} of the reward model gave no answer within {self._timeout_s:g} s")
                for i in left:
                    if self._pipes[i] in ready:
                        found[i] = self._answer(i)
        except BaseException:
            self.stop()
            raise
        return [found[i] for i in range(self.num_ranks)]

    def _answer(self, rank: int) -> Any:
        try:
            answer = self._pipes[rank].recv()
        except (EOFError, OSError) as error:
            process = self.processes[rank]
            process.join(5)
            raise ModelLost(f"part {rank} of the reward model ended with code {process.exitcode}") from error
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, Exception):  # the others wait for this one in a collective
            raise ModelLost(f"part {rank} of the reward model: {answer}") from answer
        return answer


def _rank(pipe: Connection[Any, Any], part: _Part) -> None:
    """The process of one rank: its head when the model is loaded, then answer after answer."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if part.device is not Device.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = part.card
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # all ranks are on this node
    torch.set_num_threads(part.threads)
    try:
        model = load_scalar_model(part.folder, precision=part.precision, as_stored=True)
        head = OwnForward(model, torch.device("cpu")).head.numpy()
        engine = ShardedEngine(model, part.precision, part.meeting, device=part.device)
        check_on_card(model.hf, part.folder, part.device)
        pipe.send(head)
        forward = OwnForward(model.eval(), engine.device)
        while True:
            batches, features = pipe.recv()
            [answer] = forward.ask([batches], features=features)
            pipe.send([found.numpy() for found in answer])
    except EOFError:  # the replica has closed its end
        return
    except Exception as error:  # whatever it is, the replica says it
        pipe.send(error)


def _end_with_parent() -> None:
    """A replica may be killed without a word."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
