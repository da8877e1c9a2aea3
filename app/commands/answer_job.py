"""What a process that answers suites is given, and how the lines that it sends back begin."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

NOTE, RESULT, DONE = "note ", "result ", "done"
"""How the lines on standard output begin that are for the caller; the engine's own do not."""


@dataclass(frozen=True, slots=True)
class AnswerJob:
    """What one process is to do."""

    model: str  # folder
    name: str  # as the user called it
    suites: tuple[str, ...]
    results: str  # folder of the store
    precision: str
    threads: int
    device: str
    again: bool  # also what is in the store already
    keeps_engine: bool = False  # more jobs may follow; else its memory is free before answers are graded

    def to_json(self) -> str:
        """For the process's standard input."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> AnswerJob:
        """As `to_json` wrote it."""
        given = json.loads(text)
        return cls(**{**given, "suites": tuple(given["suites"])})
