"""Functions of a user's own that are called after every logged step, in the process that drives the run.

A step's numbers and samples are on disk when they are called, and its checkpoint, where one is due, is written after
them. They see a frozen record and change nothing; what they may do is ask the run to save and stop. One that raises, or
is not done by its deadline, ends the run: what it was to look after is not looked after.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Protocol, TypeVar

from raylign.conf.errors import ConfigError, RunFailed
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
    """Writes a step through `inner`, then calls every callback. `asked` holds who asked to stop, once one has."""

    def __init__(
        self, inner: Sink, callbacks: Sequence[Callback], run: Path, tell: Callable[[str], None], *, timeout_s: float
    ) -> None:
        self._inner = inner
        self._callbacks = callbacks
        self._run = run
        self._tell = tell
        self._timeout_s = timeout_s
        self.asked = ""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step. Raises RunFailed, with the callback's name, when one raises, is not done within `timeout_s`
        seconds, or answers with neither None nor a truth value."""
        self._inner.log(step, metrics)
        for callback in self._callbacks:
            record = StepRecord(self._run, step, MappingProxyType(dict(metrics)))
            try:
                answer = _within(self._timeout_s, partial(callback.call, record))
            except _TooLong as error:
                raise RunFailed(
                    f"callbacks: {callback.path} was not done {self._timeout_s:g} s after step {step}; make it "
                    "quicker, raise callback_timeout_s, or leave it out"
                ) from error
            except (Exception, SystemExit) as error:
                raise RunFailed(
                    f"callbacks: {callback.path} failed after step {step}: {_first_line(error)}; mend it, or leave it "
                    "out"
                ) from error
            if answer is not None and not isinstance(answer, bool):
                raise RunFailed(
                    f"callbacks: {callback.path} returned a {type(answer).__name__} after step {step}; return True to "
                    "save and stop, or None"
                )
            if answer and not self.asked:
                self.asked = callback.path
                self._tell(f"callbacks: {callback.path} asked to stop after step {step}")


T = TypeVar("T")


class _TooLong(Exception):
    """A call was not done by its deadline."""


def _within(timeout_s: float, call: Callable[[], T]) -> T:
    """What `call` gives or raises, from a thread of its own. Raises _TooLong; the thread is then left behind, for
    Python cannot end one, and it ends with the process."""
    done: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:  # SystemExit too: it would end this thread alone, and silently
            done.put((None, error))

    threading.Thread(target=run, name="callback", daemon=True).start()
    try:
        answer, raised = done.get(timeout=timeout_s)
    except queue.Empty as error:
        raise _TooLong from error
    if raised is not None:
        raise raised
    return answer  # type: ignore[return-value]  # None only where `call` gave None


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
        except _BadCallback as error:
            problems.append(f"callbacks: {error}.")
    return loaded, problems


class _BadCallback(ValueError):
    """The message says why a callback cannot be used."""


def _function(path: str, timeout_s: float) -> Callable[[StepRecord], object]:
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise _BadCallback(f"{path!r} names no function; write FILE.py:NAME or module:NAME")
    try:
        module = _within(timeout_s, lambda: _module(where))
    except _BadCallback:
        raise
    except _TooLong as error:
        told = f"{where} was not imported within {timeout_s:g} s; do less at import, or raise callback_timeout_s"
        raise _BadCallback(told) from error
    except Exception as error:
        raise _BadCallback(f"{where} cannot be imported: {_first_line(error)}") from error
    except SystemExit as error:
        raise _BadCallback(f"{where} cannot be imported: it ends the process; put that under `if __name__`") from error
    found = getattr(module, name, None)
    if not callable(found):
        known = sorted(n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_"))
        raise _BadCallback(f"{where} has no function {name}; it has {', '.join(known) or 'none'}")
    if inspect.iscoroutinefunction(found):
        raise _BadCallback(f"{path} is async, and callbacks are plain functions")
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise _BadCallback(f"{path} cannot be called with one argument, the step's record ({error})") from error
    except ValueError:
        pass  # a builtin without a signature
    return found


def _module(where: str) -> ModuleType:
    return _from_file(Path(where).expanduser()) if where.endswith(".py") else importlib.import_module(where)


def _from_file(file: Path) -> ModuleType:
    """The file as a module of a name that no other module has; modules beside it can be imported by it."""
    if not file.is_file():
        raise _BadCallback(f"{file}: there is no such file")
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file of the user's replaces no installed module
    name = f"raylign_callback_{file.stem}_{abs(hash(str(file.resolve())))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _first_line(error: BaseException) -> str:
    told = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return Redactor.from_environ(os.environ).text(told)
