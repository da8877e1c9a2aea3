"""Boxes that are ready before they are needed: each an interpreter that has started, where nothing ran yet."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import Lock

from raylign.reward.sandbox.box import END_TIMEOUT_S, START_TIMEOUT_S, Box, BoxFailed, Isolation
from raylign.reward.sandbox.limits import Limits

_STARTERS = 2


class BoxPool:
    """Takes turns: a box that is taken is used for one answer and given back to be ended; another is started."""

    def __init__(self, isolation: Isolation, limits: Limits, ready: int) -> None:
        """`ready`: boxes that are kept ready."""
        self._isolation, self._limits = isolation, limits
        # These threads live as long as the pool: bubblewrap ends its sandbox when the thread that started it ends.
        self._threads = ThreadPoolExecutor(_STARTERS, thread_name_prefix="sandbox")
        self._lock = Lock()
        self._ready: deque[Future[Box]] = deque(self._start() for _ in range(ready))

    def take(self) -> Box:
        """The box that was started first. Raises BoxFailed when it did not start."""
        with self._lock:
            self._ready.append(self._start())
            coming = self._ready.popleft()
        try:
            return coming.result(timeout=2 * START_TIMEOUT_S)
        except FutureTimeoutError as error:
            coming.add_done_callback(_close)
            raise BoxFailed(f"no sandbox was ready within {2 * START_TIMEOUT_S:g} s") from error

    def done(self, box: Box) -> None:
        """End it. Nothing runs in it again."""
        self._threads.submit(box.close)

    def stop(self) -> None:
        """End all. Boxes that were taken are ended by who took them."""
        with self._lock:
            left, self._ready = self._ready, deque()
        for coming in left:
            if not coming.cancel():
                coming.add_done_callback(_close)
        self._threads.shutdown(wait=True)

    def _start(self) -> Future[Box]:
        return self._threads.submit(Box, self._isolation, self._limits)


def _close(coming: Future[Box]) -> None:
    if not coming.cancelled() and coming.exception(timeout=END_TIMEOUT_S) is None:
        coming.result(timeout=END_TIMEOUT_S).close()
