"""Functions of a user's own that are called after every logged step, in the process that drives the run.

A step's numbers and samples are on disk when they are called, and its checkpoint, where one is due, is written after
them. They see a frozen record and change nothing; what they may do is ask the run to save and stop.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Protocol

from raylign.conf.errors import ConfigError, RunFailed
from raylign.records.redaction import Redactor


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

    def __init__(self, inner: Sink, callbacks: Sequence[Callback], run: Path, tell: Callable[[str], None]) -> None:
        self._inner = inner
        self._callbacks = callbacks
        self._run = run
        self._tell = tell
        self.asked = ""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step. Raises RunFailed, with the callback's name, when one raises or answers with neither None nor a
        truth value."""
        self._inner.log(step, metrics)
        for callback in self._callbacks:
            record = StepRecord(self._run, step, MappingProxyType(dict(metrics)))
            try:
                answer = callback.call(record)
            except Exception as error:
                raise RunFailed(
                    f"callbacks: {callback.path} failed after step {step}: {_first_line(error)}; mend it, or leave it "
                    "out, and the same command goes on from the last checkpoint."
                ) from error
            if answer is not None and not isinstance(answer, bool):
                raise RunFailed(
                    f"callbacks: {callback.path} returned a {type(answer).__name__} after step {step}; return True to "
                    "save and stop, or None."
                )
            if answer and not self.asked:
                self.asked = callback.path
                self._tell(f"callbacks: {callback.path} asked to stop after step {step}")


def load_callbacks(paths: Sequence[str]) -> tuple[Callback, ...]:
    """Every function that `callbacks` names. Raises ConfigError with the problems of all."""
    loaded, problems = read_callbacks(paths)
    if problems:
        raise ConfigError(problems)
    return tuple(loaded)


def read_callbacks(paths: Sequence[str]) -> tuple[list[Callback], list[str]]:
    """The functions that can be used, and a sentence for each that cannot."""
    loaded: list[Callback] = []
    problems: list[str] = []
    for path in paths:
        try:
            loaded.append(Callback(path, _function(path)))
        except _BadCallback as error:
            problems.append(f"callbacks: {error}.")
    return loaded, problems


class _BadCallback(ValueError):
    """The message says why a callback cannot be used."""


def _function(path: str) -> Callable[[StepRecord], object]:
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise _BadCallback(f"{path!r} names no function; write FILE.py:NAME or module:NAME")
    try:
        module = _from_file(Path(where).expanduser()) if where.endswith(".py") else importlib.import_module(where)
    except _BadCallback:
        raise
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
