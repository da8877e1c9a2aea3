"""One file written beside the training: a thread reads the state, and whoever would change the state waits for it.

Masters and moments change in an optimizer's step only, so a write runs beside generation, forward and backward passes
without a copy of what it writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from raylign.trainer.verified_folder import FileDigest


class LateWriteError(RuntimeError):
    """A checkpoint's file was not on disk when the state had to change."""


class BackgroundWrite:
    """At most one write at a time."""

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s`: of a write that somebody waits for."""
        self._timeout_s = timeout_s
        self._thread: threading.Thread | None = None
        self._written: FileDigest | BaseException | None = None

    def begin(self, write: Callable[[], FileDigest]) -> None:
        """Start `write`; waits for the one before."""
        self.settle()
        self._written = None

        def run() -> None:
            try:
                self._written = write()
            except BaseException as error:  # raised to whoever asks how it ended
                self._written = error

        self._thread = threading.Thread(target=run, name="checkpoint write", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Until the state may change. Raises LateWriteError at the deadline; how a write ended, `result` says."""
        if self._thread is None:
            return
        self._thread.join(self._timeout_s)
        if self._thread.is_alive():
            raise LateWriteError(
                f"the checkpoint's file was not written within {self._timeout_s:g} s; does the disk hang?"
            )
        self._thread = None

    def result(self) -> FileDigest | None:
        """Of the write that was begun last: None while it runs. Raises what it raised."""
        if self._thread is not None and self._thread.is_alive():
            return None
        if isinstance(self._written, BaseException):
            raise self._written
        return self._written
