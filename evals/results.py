"""What a model scored on a suite, prompt by prompt, and where that is kept so that nothing is answered twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from raylign.conf.errors import DataError
from raylign.evals.statistics import Floats, Range
from raylign.records.atomic import write_atomic

_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class PromptScore:
    """One prompt: its answers and what they scored. A failed grade is None, never 0."""

    prompt_id: str
    prompt: str
    answers: tuple[str, ...]
    scores: tuple[float | None, ...]
    failure: str = ""  # why the first failed grade failed
    slices: tuple[str, ...] = ()  # that it belongs to, as "topic: billing"

    @property
    def value(self) -> float | None:
        """Mean over the answers; None when one of them has no grade, for the mean of the others is another figure."""
        known = [score for score in self.scores if score is not None]
        return sum(known) / len(known) if known and len(known) == len(self.scores) else None


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """All prompts of a suite, answered by one model. Higher is better."""

    suite: str
    about: str
    model: str
    model_digest: str
    suite_digest: str  # rows, grading and sampling: results are comparable where it is equal
    unit: str  # "share right", "score", "nats a token"
    possible: Range | None
    seconds: float
    rows: tuple[PromptScore, ...]

    def scores(self) -> Floats:
        """Of the prompts that have one."""
        return np.array([row.value for row in self.rows if row.value is not None], dtype=np.float64)

    @property
    def failed(self) -> int:
        """Prompts without a score."""
        return sum(row.value is None for row in self.rows)


def paired(candidate: SuiteResult, current: SuiteResult) -> tuple[Floats, Floats]:
    """Scores of the prompts that both have, in the same order. Raises DataError when the suites are not the same."""
    table = np.array([(row.value, other) for row, other in paired_rows(candidate, current)], dtype=np.float64)
    return table.reshape(-1, 2)[:, 0], table.reshape(-1, 2)[:, 1]


def paired_rows(candidate: SuiteResult, current: SuiteResult) -> list[tuple[PromptScore, float]]:
    """The candidate's rows that both have a score of, and the current model's score. Raises DataError as `paired`."""
    if candidate.suite_digest != current.suite_digest:
        raise DataError(
            f"suite {candidate.suite}: {candidate.model} and {current.model} were evaluated on different suites (rows, "
            "grading or sampling differ); evaluate both again."
        )
    others = {row.prompt_id: row.value for row in current.rows}
    return [
        (row, other)
        for row in candidate.rows
        if row.value is not None and (other := others.get(row.prompt_id)) is not None
    ]


@dataclass(frozen=True, slots=True)
class ResultStore:
    """A folder of results, one file each, by what they depend on."""

    folder: Path

    def find(self, key: str) -> SuiteResult | None:
        """The result of `key`, or None; a file that cannot be read is not there."""
        try:
            given = json.loads(self._path(key).read_text(encoding="utf-8"))
            rows = tuple(_row(row) for row in given.pop("rows"))
            possible = given.pop("possible")
            return SuiteResult(**given, possible=Range(**possible) if possible else None, rows=rows)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, key: str, result: SuiteResult) -> Path:
        """Write it whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key)
        write_atomic(path, json.dumps(asdict(result), ensure_ascii=False, indent=1) + "\n")
        return path

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def _row(given: Mapping[str, Any]) -> PromptScore:
    lists = {name: tuple(given.get(name, ())) for name in ("answers", "scores", "slices")}
    return PromptScore(**{**given, **lists})


def result_key(suite: str, parts: Mapping[str, str]) -> str:
    """A file name: the suite's, and a hash of everything the result depends on."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return f"{suite}-{digest}"


def model_digest(folder: Path) -> str:
    """Hash of every file of a model folder that answers depend on, weights by content: training keeps their size."""
    total = xxhash.xxh3_128()
    for path in sorted(_model_files(folder)):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                total.update(chunk)
        total.update(b"\0")
    return total.hexdigest()


def _model_files(folder: Path) -> Sequence[Path]:
    """Cards and training records may differ between equal models."""
    kinds = (".safetensors", ".json", ".jinja", ".model", ".txt")
    return [path for path in folder.iterdir() if path.is_file() and path.suffix in kinds]
