"""A reward function in a process of its own: started when needed, watched, ended when it hangs, started again.

What it prints goes to the role's log without secrets. One of the process's calls that hangs or dies fails the answers
of that call; the others are called again in a new process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from raylign.reward.function_messages import (
    Ask,
    Done,
    Figures,
    FunctionCode,
    FunctionError,
    Hello,
    Loaded,
    Measure,
    Started,
)  # fmt: skip
from raylign.reward.own_process import OwnProcess
from raylign.reward.samples import NotScored, Sample, Score

_HOST = "raylign.reward.function_host"

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    own: OwnProcess
    loaded: Loaded | None = None


@dataclass(slots=True)
class _Batch:
    """What became of each sample."""

    samples: Sequence[Sample]
    scores: dict[int, Score] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)

    def left(self) -> list[int]:
        return [row for row in range(len(self.samples)) if row not in self.scores]

    def fail(self, rows: Sequence[int], reason: str) -> None:
        self.scores.update({row: NotScored(reason, always=True) for row in rows})


class FunctionProcess:
    """A SampleScorer: one function, whose process starts at the first call and again after it hung or died."""

    def __init__(
        self, code: FunctionCode, *, timeout_s: float, start_timeout_s: float, batch_timeout_s: float | None = None
    ) -> None:
        """`timeout_s`: of one call of the function; `batch_timeout_s`: of all calls that one batch takes (verl's
        signature has one a sample), restarts included."""
        self._code = code
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._batch_timeout_s = timeout_s if batch_timeout_s is None else batch_timeout_s
        self._running: _Running | None = None

    def load(self) -> Loaded:
        """Start the process and load the function. Raises FunctionError when it cannot be used."""
        loaded = self._ready(self._start_timeout_s).loaded
        assert loaded is not None
        return loaded

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One a sample, in order. Never raises for what the function does."""
        batch = _Batch(samples)
        until = time.monotonic() + self._batch_timeout_s
        try:
            self._ready(self._start_timeout_s)
            until = time.monotonic() + self._batch_timeout_s  # what the first start takes is not the calls' time
            while left := batch.left():
                if time.monotonic() >= until:
                    batch.fail(left, f"it was not called: earlier calls took the {self._batch_timeout_s:g} s there are")
                    break
                self._ask(batch, left, until)
        except FunctionError as error:
            batch.fail(batch.left(), str(error))
        return [batch.scores[row] for row in range(len(samples))]

    def measure(self, samples: Sequence[Sample]) -> Figures:
        """The function's values for the whole set. Never raises for what it does; one that hangs is ended."""
        try:
            running = self._ready(self._start_timeout_s)
            running.own.pipe.send(Measure(samples))
            if running.own.pipe.poll(self._timeout_s):
                answer: Figures = running.own.pipe.recv()
                return answer
        except FunctionError as error:
            return NotScored(str(error))
        except (EOFError, OSError):
            code = running.own.exit_code()
            self.stop()
            return NotScored(f"its process ended{'' if code is None else f' with code {code}'}")
        self.stop()
        return NotScored(f"it did not answer within {self._timeout_s:g} s")

    def stop(self) -> None:
        """End the process; the next call starts another."""
        running, self._running = self._running, None
        if running is None:
            return
        running.own.end()

    def _ask(self, batch: _Batch, rows: Sequence[int], until: float) -> None:
        """Ask for `rows`. On return they are all scored, or those that were being scored have failed."""
        running = self._ready(max(0.0, until - time.monotonic()))
        batch.started.clear()
        try:
            running.own.pipe.send(Ask([batch.samples[row] for row in rows]))
            while any(row not in batch.scores for row in rows):
                patience = min(self._timeout_s, max(0.0, until - time.monotonic()))
                if not running.own.pipe.poll(patience):
                    self.stop()
                    self._fail_started(batch, rows, f"it did not answer within {patience:g} s")
                    return
                _note(batch, rows, running.own.pipe.recv())
        except (EOFError, OSError):
            code = running.own.exit_code()
            self.stop()
            self._fail_started(batch, rows, f"its process ended{'' if code is None else f' with code {code}'}")

    @staticmethod
    def _fail_started(batch: _Batch, rows: Sequence[int], reason: str) -> None:
        at_fault = [row for row in rows if row in batch.started and row not in batch.scores]
        batch.fail(at_fault or [row for row in rows if row not in batch.scores], reason)

    def _ready(self, timeout_s: float) -> _Running:
        if self._running is not None and self._running.own.running:
            return self._running
        self.stop()
        running = self._running = _Running(OwnProcess.start(_HOST, self._code.function, logger))
        loaded = self._loaded(running, timeout_s)
        if loaded.problem:
            self.stop()
            raise FunctionError(loaded.problem)
        running.loaded = loaded
        return running

    def _loaded(self, running: _Running, timeout_s: float) -> Loaded:
        try:
            running.own.pipe.send(Hello(self._code))
            if running.own.pipe.poll(timeout_s):
                answer: Loaded = running.own.pipe.recv()
                return answer
        except (EOFError, OSError):
            code = running.own.exit_code()
            return Loaded(f"{self._code.module} ended the process that imported it, with code {code}", None)
        return Loaded(
            f"it was not imported within {timeout_s:g} s; do less at import, or raise its start_timeout_s",
            None,
        )


def _note(batch: _Batch, rows: Sequence[int], message: Started | Done) -> None:
    mine = [rows[row] for row in message.rows]
    if isinstance(message, Started):
        batch.started.update(mine)
    else:
        batch.scores.update(zip(mine, message.scores, strict=True))
