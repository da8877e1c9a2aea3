"""Functions of a user's own that are called after every logged step, in the process that drives the run.

A step's numbers and samples are on disk when they are called, and its checkpoint, where one is due, is written after
them. They see a frozen record and change nothing; what they may do is ask the run to save and stop. One that raises, or
is not done by its deadline, ends the run: what it was to monitor is not monitored.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from raylign.conf.errors import ConfigError, RunFailed
from raylign.conf.own_code import OwnCodeError, TooLong, first_line, load_named, within
from raylign.records.redaction import Redactor
from raylign.reward.functions import sent_files


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One finished step. Step 0 is the evaluation before training, where there is one."""

    run: Path  # the run's folder: raylign.load_samples(run) has the step's answers
    step: int
    metrics: Mapping[str, float]  # as in metrics.jsonl; read-only


@dataclass(frozen=True, slots=True)
class Callback:
    """A loaded function and how it was named."""

    path: str
    call: Callable[[StepRecord], object]


class Sink(Protocol):
    """A loops.MetricSink."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...


class CallbackSink:
    """Writes a step through `inner`, then calls every callback. `stopped_by`: who requested a stop."""

    def __init__(
        self, inner: Sink, callbacks: Sequence[Callback], run: Path, tell: Callable[[str], None], *, timeout_s: float
    ) -> None:
        self._inner = inner
        self._callbacks = callbacks
        self._run = run
        self._tell = tell
        self._timeout_s = timeout_s
        self.stopped_by = ""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step. Raises RunFailed, with the callback's name, when one raises, is not done within `timeout_s`
        seconds, or answers with neither None nor a truth value."""
        self._inner.log(step, metrics)
        for callback in self._callbacks:
            record = StepRecord(self._run, step, MappingProxyType(dict(metrics)))
            try:
                answer = within(self._timeout_s, partial(callback.call, record))
            except TooLong as error:
                raise RunFailed(
                    f"callbacks: {callback.path} was not done {self._timeout_s:g} s after step {step}; make it "
                    "quicker, raise callback_timeout_s, or leave it out"
                ) from error
            except (Exception, SystemExit) as error:
                raise RunFailed(
                    f"callbacks: {callback.path} failed after step {step}: {_shown(error)}; fix it, or leave it out"
                ) from error
            if answer is not None and not isinstance(answer, bool):
                raise RunFailed(
                    f"callbacks: {callback.path} returned a {type(answer).__name__} after step {step}; return True to "
                    "save and stop, or None"
                )
            if answer and not self.stopped_by:
                self.stopped_by = callback.path
                self._tell(f"callbacks: {callback.path} asked to stop after step {step}")


def callback_files(paths: Sequence[str]) -> dict[str, Path]:
    """Every file that a callback can import from its folder, by key, for the manifest."""
    return {f"callbacks.{file.name}": file for path in paths for file in sent_files(path)}


def load_callbacks(paths: Sequence[str], timeout_s: float) -> tuple[Callback, ...]:
    """Every function that `callbacks` names; each file is imported within `timeout_s` seconds.

    Raises ConfigError with the problems of all.
    """
    loaded, problems = read_callbacks(paths, timeout_s)
    if problems:
        raise ConfigError(problems)
    return tuple(loaded)


def read_callbacks(paths: Sequence[str], timeout_s: float) -> tuple[list[Callback], list[str]]:
    """The functions that can be used, and a sentence for each that cannot."""
    loaded: list[Callback] = []
    problems: list[str] = []
    for path in paths:
        try:
            loaded.append(Callback(path, _function(path, timeout_s)))
        except OwnCodeError as error:
            problems.append(f"callbacks: {path}: {error}.")
    return loaded, problems


def _function(path: str, timeout_s: float) -> Callable[[StepRecord], object]:
    try:
        found = load_named(path, "function", timeout_s=timeout_s)
    except OwnCodeError as error:
        if isinstance(error.__cause__, TooLong):
            raise OwnCodeError(f"{error}, or raise callback_timeout_s") from error
        raise
    if not callable(found):
        raise OwnCodeError(f"is a {type(found).__name__}; a callback is a function of one argument, the step's record")
    if inspect.iscoroutinefunction(found):
        raise OwnCodeError("is async, and callbacks are plain functions")
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise OwnCodeError(f"cannot be called with one argument, the step's record ({error})") from error
    except ValueError:
        pass  # a builtin without a signature
    return found


def _shown(error: BaseException) -> str:
    return Redactor.from_environ(os.environ).text(first_line(error))
