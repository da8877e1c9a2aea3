"""Reward functions of a user's own: found, recognised by their parameters, and called in a process of their own.

Three signatures are understood, and told apart by parameter names (docs/own-reward.md):

    trl        f(prompts, completions, **columns) -> list of numbers; None: not applicable
    verl       f(data_source, solution_str, ground_truth, extra_info=None) -> number, or {"score": number, ...}
    openrlhf   f(queries, prompts, labels) -> {"rewards": numbers}

A function may be async. What it raises, None, and what is not a finite number are named failures of the samples
concerned, never 0; so is a call that takes too long, or ends the process. No Ray here.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 120.0
_MAX_REASON = 300
_MOST_BYTES = 1 << 20  # of one file that goes along


class Style(Enum):
    """Whose signature a function has."""

    trl = "trl"
    verl = "verl"
    openrlhf = "openrlhf"


_MARKS = {
    Style.openrlhf: {"queries", "prompts", "labels"},
    Style.verl: {"data_source", "solution_str", "ground_truth"},
    Style.trl: {"prompts", "completions"},
}


class FunctionError(ValueError):
    """A reward function that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class FunctionSource:
    """Where a function comes from, with the files it needs, so that another machine can run it."""

    name: str  # of its component in metrics
    function: str
    module: str  # of an installed module; of a file, its stem
    files: tuple[tuple[str, str], ...]  # name and text of the file and of the python files beside it; empty: installed
    style: Style


@dataclass(frozen=True, slots=True)
class Sample:
    """What a function may be told of one answer."""

    prompt: str
    completion: str
    messages: tuple[tuple[str, str], ...]  # role and content of the prompt
    completion_ids: tuple[int, ...]
    query: str  # prompt and answer as plain text, without the template's special tokens
    data_source: str
    ground_truth: str | None
    columns: Mapping[str, Any]


def read_source(path: str, *, name: str = "", style: str = "auto") -> FunctionSource:
    """The function that `FILE.py:NAME` or `module:NAME` names. Imports it once, here, to see that it works.

    Raises FunctionError in one sentence: no such file or function, an import that fails, a signature nobody knows.
    """
    where, _, function = path.rpartition(":")
    if not where or not function:
        raise FunctionError(f"{path!r} names no function; write FILE.py:NAME or module:NAME")
    files: tuple[tuple[str, str], ...] = ()
    module = where
    if where.endswith(".py"):
        file = Path(where).expanduser()
        if not file.is_file():
            raise FunctionError(f"{where}: there is no such file")
        files = _with_neighbours(file)
        module = file.stem
    found = _load(module, function, Path(where).expanduser().parent if files else None)
    return FunctionSource(name or function, function, module, files, _style(found, path, style))


def _with_neighbours(file: Path) -> tuple[tuple[str, str], ...]:
    """The file and the Python files beside it that can be read. Raises FunctionError when the file itself cannot."""
    found: list[tuple[str, str]] = []
    for path in sorted(file.parent.glob("*.py")):
        if path.stat().st_size > _MOST_BYTES:
            continue
        try:
            found.append((path.name, path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            if path.name == file.name:
                raise FunctionError(f"{file} cannot be read: {error}") from error
    return tuple(found)


def _load(module: str, function: str, folder: Path | None) -> Callable[..., Any]:
    try:
        if folder is None:
            loaded = importlib.import_module(module)
        else:
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))  # for what it imports from beside itself
            spec = importlib.util.spec_from_file_location(f"raylign_reward_{module}", folder / f"{module}.py")
            assert spec is not None and spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:  # a user's module may raise anything; Ctrl-C stays the person's
        raise FunctionError(f"{module} cannot be imported: {_said(error)}") from error
    found = getattr(loaded, function, None)
    if not callable(found):
        names = [n for n, v in vars(loaded).items() if callable(v) and not n.startswith("_")]
        raise FunctionError(f"{module} has no function {function!r}; it has {', '.join(names[:8]) or 'none'}")
    return found


def _style(function: Callable[..., Any], path: str, wanted: str) -> Style:
    if wanted != "auto":
        return Style(wanted)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise FunctionError(f"{path} has no signature to read; say style=trl, verl or openrlhf") from error
    for style, marks in _MARKS.items():
        if marks <= parameters.keys():
            return style
    forms = "; ".join(f"{style.value}: {', '.join(sorted(marks))}" for style, marks in _MARKS.items())
    raise FunctionError(
        f"{path} takes ({', '.join(parameters)}), which is no signature of a reward function known here ({forms}); "
        "rename its parameters, or say style=trl, verl or openrlhf"
    )


def call_function(function: Callable[..., Any], style: Style, samples: Sequence[Sample]) -> list[float | str]:
    """A number a sample, or why there is none."""
    if style is Style.verl:
        return [_one_of_verl(function, sample) for sample in samples]
    try:
        given = _accepted(function, _trl(samples)) if style is Style.trl else {}
        answer = _awaited(function(**given) if style is Style.trl else function(*_openrlhf(samples)))
        if style is Style.openrlhf:
            answer = answer["rewards"]
        values = answer.tolist() if hasattr(answer, "tolist") else list(answer)
    except Exception as error:
        return [f"it raised {_said(error)}"] * len(samples)
    if len(values) != len(samples):
        return [f"it gave {len(values)} values for {len(samples)} answers"] * len(samples)
    return [_number(value) for value in values]


def _one_of_verl(function: Callable[..., Any], sample: Sample) -> float | str:
    try:
        answer = _awaited(
            function(
                data_source=sample.data_source,
                solution_str=sample.completion,
                ground_truth=sample.ground_truth,
                extra_info=dict(sample.columns),
            )
        )
        return _number(answer["score"] if isinstance(answer, Mapping) else answer)
    except Exception as error:
        return f"it raised {_said(error)}"


def _trl(samples: Sequence[Sample]) -> dict[str, Any]:
    """TRL's keywords: strings, or message lists for conversations; every column of the rows as a list."""
    chat = any(sample.messages for sample in samples)
    names = sorted({name for sample in samples for name in sample.columns})
    given: dict[str, Any] = {name: [sample.columns.get(name) for sample in samples] for name in names}
    given.setdefault("ground_truth", [sample.ground_truth for sample in samples])
    return given | {
        "prompts": [[{"role": r, "content": c} for r, c in s.messages] if chat else s.prompt for s in samples],
        "completions": [
            [{"role": "assistant", "content": s.completion}] if chat else s.completion for s in samples
        ],
        "completion_ids": [list(sample.completion_ids) for sample in samples],
    }  # fmt: skip


def _accepted(function: Callable[..., Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Only what the function has parameters for, unless it takes any keyword."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def _openrlhf(samples: Sequence[Sample]) -> tuple[list[str], list[str], list[str | None]]:
    return [s.query for s in samples], [s.prompt for s in samples], [s.ground_truth for s in samples]


def _awaited(value: Any) -> Any:
    return asyncio.run(_wait(value)) if inspect.isawaitable(value) else value


async def _wait(value: Any) -> Any:
    return await value


def _number(value: Any) -> float | str:
    if value is None:
        return "it gave None: not applicable"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"it gave {type(value).__name__}, not a number"
    return number if math.isfinite(number) else f"it gave {number}"


def _said(error: BaseException) -> str:
    """The last line of an exception, short enough for a log."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_MAX_REASON] if text else type(error).__name__


class FunctionProcess:
    """One function in a process of its own, started at the first call and again after it hung or died."""

    def __init__(self, source: FunctionSource, timeout_s: float) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def score(self, samples: Sequence[Sample]) -> list[float | str]:
        """A number a sample, or why there is none. Never raises for what the function does."""
        try:
            pipe = self._ready()
            pipe.send(list(samples))
            if not pipe.poll(self._timeout_s):
                self.stop()
                return [f"it did not answer within {self._timeout_s:g} s"] * len(samples)
            answer: list[float | str] = pipe.recv()
        except (EOFError, OSError):
            if self._process is not None:
                self._process.join(timeout=5)  # the pipe closes a moment before the exit code is there
            code = self._process.exitcode if self._process is not None else None
            self.stop()
            return [f"its process ended{'' if code is None else f' with code {code}'}"] * len(samples)
        except FunctionError as error:
            return [str(error)] * len(samples)
        return answer

    def _ready(self) -> Connection:
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        self.stop()
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._source, there), daemon=True)
        self._process.start()
        there.close()
        self._pipe = here
        if not here.poll(START_TIMEOUT_S):
            self.stop()
            raise FunctionError(f"it could not be imported within {START_TIMEOUT_S:g} s")
        problem = here.recv()
        if problem:
            self.stop()
            raise FunctionError(problem)
        return here

    def stop(self) -> None:
        """End the process; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join(timeout=5)
        if self._pipe is not None:
            self._pipe.close()
        self._process, self._pipe = None, None


def _serve(source: FunctionSource, pipe: Connection) -> None:
    with tempfile.TemporaryDirectory(prefix="raylign-reward-") as folder:
        try:
            for name, text in source.files:
                (Path(folder) / name).write_text(text, encoding="utf-8")
            function = _load(source.module, source.function, Path(folder) if source.files else None)
        except FunctionError as error:
            pipe.send(str(error))
            return
        pipe.send("")
        while True:
            try:
                samples = pipe.recv()
            except EOFError:
                return
            pipe.send(call_function(function, source.style, samples))
