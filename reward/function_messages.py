"""Messages between a reward function's process and its parent. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from raylign.reward.samples import NotScored, Sample, Score


class Style(Enum):
    """Whose signature a function has."""

    trl = "trl"
    verl = "verl"
    openrlhf = "openrlhf"


class FunctionError(ValueError):
    """A reward function that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class FunctionCode:
    """A function with the files it needs, so that another machine can run it."""

    path: str  # as it was given, for messages
    function: str
    module: str  # of an installed module; of a file, its stem
    files: tuple[tuple[str, str], ...]  # name and text of the file and of the python files beside it; empty: installed
    wanted: Style | None  # None: by its parameters


@dataclass(frozen=True, slots=True)
class Hello:
    """The parent's first message."""

    code: FunctionCode


@dataclass(frozen=True, slots=True)
class Loaded:
    """The answer to it. `problem` is empty when the function can be called."""

    problem: str
    style: Style | None
    columns: tuple[str, ...] = ()  # without which it cannot be called


@dataclass(frozen=True, slots=True)
class Ask:
    """A batch to score."""

    samples: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Measure:
    """A whole set to measure together."""

    samples: Sequence[Sample]


Figures = Mapping[str, float] | NotScored
"""A metric's values for a set: a number by name ("": the metric's own), or why there is none."""


@dataclass(frozen=True, slots=True)
class Started:
    """The function was called for these samples of the batch."""

    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """And these are its scores, one a row."""

    rows: tuple[int, ...]
    scores: tuple[Score, ...]
