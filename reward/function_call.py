"""Calling a reward function the way the trainer it was written for calls it.

    trl        f(prompts, completions, **columns) -> list of numbers; None: not applicable
    verl       f(data_source, solution_str, ground_truth, extra_info=None) -> number, or {"score": number, ...}
    openrlhf   f(queries, prompts, labels) -> {"rewards": numbers}

TRL: GRPOTrainer's `RewardFunc`, 1.16, where None is left out of the weighted sum. verl: `custom_reward_function`.
OpenRLHF: `--reward.remote_url FILE.py`. This runs in the function's own process; no torch is imported here.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from raylign.records.redaction import Redactor
from raylign.reward.function_messages import Done, Figures, FunctionError, Started, Style
from raylign.reward.samples import NotScored, Sample, Score, as_score

_MAX_REASON = 300
_FIGURE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MOST_AT_ONCE = 64  # calls of an async verl function under way


_MARKS: Mapping[Style, tuple[str, ...]] = {
    Style.openrlhf: ("queries", "prompts", "labels"),
    Style.verl: ("data_source", "solution_str", "ground_truth"),
    Style.trl: ("prompts", "completions"),
}
_TRL_ONLY = {"trainer_state", "log_extra", "log_metric", "environments"}
_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def recognised(function: Callable[..., Any], path: str, wanted: Style | None) -> Style:
    """The style of `function`, or `wanted` when it can be called so.

    Raises FunctionError for a signature nobody knows, and for one that does not fit `wanted`.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        if wanted is not None:
            return wanted  # of a builtin or a callable of C there is nothing to check
        raise FunctionError("its signature cannot be read; set style: trl, verl or openrlhf") from error
    style = wanted or next((style for style, marks in _MARKS.items() if set(marks) <= parameters.keys()), None)
    if style is None:
        forms = "; ".join(f"{style.value}: {', '.join(marks)}" for style, marks in _MARKS.items())
        raise FunctionError(
            f"it takes ({', '.join(parameters)}), which is not a known signature of a reward function ({forms}); "
            "rename its parameters, or set style: trl, verl or openrlhf"
        )
    if problem := _misfit(parameters, style):
        raise FunctionError(f"it takes ({', '.join(parameters)}), but style {style.value} {problem}")
    return style


def columns_needed(function: Callable[..., Any], style: Style) -> tuple[str, ...]:
    """The columns without which a function cannot be called: TRL's parameters without a default."""
    if style is not Style.trl:
        return ()
    try:
        parameters = inspect.signature(function).parameters.items()
    except (TypeError, ValueError):
        return ()
    given = {"prompts", "completions", "completion_ids", "ground_truth"}
    return tuple(n for n, p in parameters if p.default is p.empty and p.kind not in _VARIADIC and n not in given)


def _misfit(parameters: Mapping[str, inspect.Parameter], style: Style) -> str:
    """Why a function of these parameters cannot be called in a style; "" when it can."""
    kinds = {p.kind for p in parameters.values()}
    required = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in _VARIADIC]
    if style is Style.openrlhf:
        places = sum(p.kind in _POSITIONAL for p in parameters.values())
        more = [n for n in required[3:] if parameters[n].kind in _POSITIONAL]
        more += [n for n in required if parameters[n].kind is inspect.Parameter.KEYWORD_ONLY]
        if places < 3 and inspect.Parameter.VAR_POSITIONAL not in kinds:
            return "is called as f(queries, prompts, labels)"
        return f"gives no {', '.join(more)}; give it a default" if more else ""
    if any(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in parameters.values()):
        return "passes everything by name, which a parameter before / does not take"
    takes_all = inspect.Parameter.VAR_KEYWORD in kinds
    wanted = set(_MARKS[style]) if style is Style.verl else {"completions"}
    if not takes_all and (missing := sorted(wanted - parameters.keys())):
        return f"gives {', '.join(missing)} by name, which it does not take"
    if style is Style.verl and (more := [n for n in required if n not in {*_MARKS[style], "extra_info"}]):
        return f"gives no {', '.join(more)}; give it a default, or read it from extra_info"
    if style is Style.trl and (more := [n for n in required if n in _TRL_ONLY]):
        return f"has no {', '.join(more)} here, which exists in TRL's trainer only; give it a default"
    return ""


Tell = Callable[[Started | Done], None]


class Caller:
    """One function, called batch after batch; async ones share an event loop, as their clients may hold on to it."""

    def __init__(self, function: Callable[..., Any], style: Style) -> None:
        self._function = function
        self._style = style
        self._columns = columns_needed(function, style)
        self._runner = asyncio.Runner()

    def score(self, samples: Sequence[Sample], tell: Tell) -> None:
        """Call for `samples` and tell what becomes of each, as it happens. Never raises for what the function does."""
        if self._style is not Style.verl:
            self._batch(samples, tell)
        elif inspect.iscoroutinefunction(self._function):
            self._runner.run(self._together(samples, tell))
        else:
            for row, sample in enumerate(samples):
                tell(Started((row,)))
                tell(Done((row,), (self._one(sample),)))

    def measure(self, samples: Sequence[Sample]) -> Figures:
        """Call once for the whole set, in TRL's form. Never raises for what the function does."""
        missing = {name: [None] * len(samples) for name in self._columns}
        try:
            answer = self._awaited(self._function(**_accepted(self._function, missing | _trl(samples))))
        except Exception as error:
            return NotScored(f"it raised {error_text(error)}")
        found = {
            str(name): as_score(v) for name, v in (answer if isinstance(answer, Mapping) else {"": answer}).items()
        }
        for name, value in found.items():
            if not isinstance(value, float):
                why = "it gave None" if value is None else value.reason
                where = f" for {name!r}" if name else ""
                return NotScored(f"{why}{where}; return a number, or a mapping of names to numbers")
            if name and not _FIGURE.fullmatch(name):
                return NotScored(f"it named a number {name!r}; use A-Z a-z 0-9 . _ -")
        return {n: v for n, v in found.items() if isinstance(v, float)} or NotScored("it gave an empty mapping")

    def _batch(self, samples: Sequence[Sample], tell: Tell) -> None:
        rows = tuple(range(len(samples)))
        tell(Started(rows))
        try:
            values = self._values(samples)
        except Exception as error:
            tell(Done(rows, (NotScored(f"it raised {error_text(error)}"),) * len(rows)))
            return
        if isinstance(values, list) and len(values) == len(rows):
            tell(Done(rows, tuple(as_score(value) for value in values)))
            return
        if isinstance(values, list):
            why = f"it gave {len(values)} values for {len(rows)} answers"
        else:
            given = "None" if values is None else type(values).__name__
            why = f"it gave {given}, not a list of {len(rows)} numbers"
        tell(Done(rows, (NotScored(why, always=True),) * len(rows)))

    def _values(self, samples: Sequence[Sample]) -> object:
        """A list, or what it returned instead of one."""
        if self._style is Style.trl:
            missing = {name: [None] * len(samples) for name in self._columns}  # no row of this batch has a value
            answer = self._awaited(self._function(**_accepted(self._function, missing | _trl(samples))))
        else:
            answer = self._awaited(
                self._function(
                    [s.templated_query for s in samples],
                    [s.templated_prompt for s in samples],
                    [s.ground_truth for s in samples],
                )
            )
            answer = answer.get("rewards") if isinstance(answer, Mapping) else answer
        answer = answer.tolist() if hasattr(answer, "tolist") else answer
        listed = isinstance(answer, Iterable) and not isinstance(answer, str | bytes)
        return list(answer) if listed else answer

    def _one(self, sample: Sample) -> Score:
        try:
            return _verl_score(self._awaited(self._function(**_accepted(self._function, _verl(sample)))))
        except Exception as error:
            return NotScored(f"it raised {error_text(error)}")

    async def _together(self, samples: Sequence[Sample], tell: Tell) -> None:
        places = asyncio.Semaphore(_MOST_AT_ONCE)

        async def one(row: int, sample: Sample) -> None:
            async with places:
                tell(Started((row,)))
                try:
                    score = _verl_score(await self._function(**_accepted(self._function, _verl(sample))))
                except Exception as error:
                    score = NotScored(f"it raised {error_text(error)}")
                tell(Done((row,), (score,)))

        await asyncio.gather(*(one(row, sample) for row, sample in enumerate(samples)))

    def _awaited(self, value: Any) -> Any:
        return self._runner.run(_wait(value)) if inspect.isawaitable(value) else value


async def _wait(value: Any) -> Any:
    return await value


def _verl(sample: Sample) -> dict[str, Any]:
    """verl's rows have their truth in `reward_model` and their own columns in `extra_info`; ours have them beside."""
    columns = dict(sample.columns)
    nested, extra = columns.get("reward_model"), columns.get("extra_info")
    truth = sample.ground_truth
    if truth is None and isinstance(nested, Mapping):
        truth = nested.get("ground_truth")
    return {
        "data_source": sample.data_source,
        "solution_str": sample.completion,
        "ground_truth": truth,
        "extra_info": columns | dict(extra) if isinstance(extra, Mapping) else columns,
    }


def _verl_score(answer: Any) -> Score:
    """verl knows no `not applicable`: None is no score."""
    score = as_score(answer["score"] if isinstance(answer, Mapping) else answer)
    return NotScored("it gave None, and style verl has one function for every row") if score is None else score


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
    """Only what the function has parameters for, unless it takes any keyword, or nobody can tell."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return given
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def error_text(error: BaseException) -> str:
    """An exception in one line, without secrets of this process's environment, short enough for a log."""
    text = " ".join(error_message(error).split())
    return f"{type(error).__name__}: {text}"[:_MAX_REASON] if text else type(error).__name__


def error_message(error: BaseException) -> str:
    """What an exception says, as it says it, without secrets of this process's environment."""
    return Redactor.from_environ(os.environ).text(str(error))
