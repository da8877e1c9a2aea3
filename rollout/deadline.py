"""Calls that may never return, and a deadline on them that holds whatever they do. Pure Python."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import TypeVar

from raylign.rollout.interfaces import WeightUpdateError

T = TypeVar("T")

GRACE_S = 1.0
"""After a call's own timeout, how long it may take to say so."""


class DisposableThread:
    """Runs one call after another; whoever waits for one does so with a deadline, and may leave it behind.

    Not a ThreadPoolExecutor: the interpreter waits for those threads at its end.
    """

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], object], Future] | None] = queue.SimpleQueue()
        self._abandoned = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` after what was submitted before."""
        future: Future[T] = Future()
        self._tasks.put((work, future))
        return future

    def end(self) -> None:
        """No more work comes."""
        self._tasks.put(None)

    def abandon(self) -> None:
        """Begin nothing that has not begun; what runs is left to itself."""
        self._abandoned = True
        self.end()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            work, future = task
            if self._abandoned:
                future.cancel()
                continue
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            del work, future, task  # a buffer, perhaps


class Phase:
    """A phase of a transfer and its deadline."""

    def __init__(self, name: str, timeout_s: float) -> None:
        self._name, self._timeout_s = name, timeout_s
        self._until = time.monotonic() + timeout_s

    @property
    def left(self) -> float:
        """Seconds; never 0, which torch takes for none."""
        return max(0.01, self._until - time.monotonic())

    @property
    def for_torch(self) -> timedelta:
        """The same, for a call of torch's."""
        return timedelta(seconds=self.left)

    def result(self, future: Future[T]) -> T:
        """Raises WeightUpdateError when it has failed or is late."""
        try:
            return future.result(self.left + GRACE_S)
        except TimeoutError as error:
            raise WeightUpdateError(f"{self._name} did not finish within {self._timeout_s:g} s") from error
        except (RuntimeError, OSError) as error:  # torch.distributed's own are RuntimeErrors
            cause = str(error).strip().partition("\n")[0]
            raise WeightUpdateError(f"{self._name} broke off: {type(error).__name__}: {cause}") from error
