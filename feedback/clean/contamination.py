"""Texts that overlap with benchmarks: a run of words in common, as Tulu 3 measured it (8 words)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from raylign.conf.errors import DataError
from raylign.feedback.clean.similarity import word_runs
from raylign.feedback.filtering import Filtered, apply_rules
from raylign.feedback.turns import contents
from raylign.feedback.working import normalised


def benchmark_texts(files: Sequence[str]) -> pl.Series:
    """All texts of the files: the lines of a .txt, every string of a .jsonl. Raises DataError."""
    return pl.Series([text for name in files for text in _texts(Path(name).expanduser())], dtype=pl.String)


def drop_contaminated(work: pl.DataFrame, benchmark: pl.Series, *, ngram: int) -> Filtered:
    """Drop working rows of which any text shares `ngram` words in a row with a benchmark's text."""
    known = np.unique(word_runs(_plain(benchmark), ngram)[0])
    hit = np.zeros(work.height, bool)
    texts = {"prompt": contents(pl.col("prompt")), **{n: pl.col(n) for n in ("answer_a", "answer_b", "corrected")}}
    for start in range(0, work.height, 100_000):
        chunk = work.slice(start, 100_000)
        for text in texts.values():
            hit[start : start + chunk.height] |= _hits(chunk.select(text.fill_null("").alias("t"))["t"], known, ngram)
    return apply_rules(work, {"contaminated": pl.lit(pl.Series(hit))})


def overlapping(texts: pl.Series, benchmark: pl.Series, *, ngram: int) -> np.ndarray:
    """[len(texts)] bool: which share `ngram` words in a row with a benchmark's text."""
    return _hits(texts, np.unique(word_runs(_plain(benchmark), ngram)[0]), ngram)


def _hits(texts: pl.Series, known: np.ndarray, ngram: int) -> np.ndarray:
    hit = np.zeros(len(texts), bool)
    hashes, rows = word_runs(_plain(texts), ngram)
    hit[rows[np.isin(hashes, known)]] = True
    return hit


def _plain(texts: pl.Series) -> pl.Series:
    return pl.DataFrame({"t": texts}).select(normalised(pl.col("t")))["t"]


def _texts(path: Path) -> Iterator[str]:
    try:
        # Not `splitlines`: it also cuts at characters (U+0085, U+2028) that JSON leaves inside strings.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        for line in lines:
            yield from [line] if path.suffix == ".txt" else _strings(json.loads(line)) if line.strip() else []
    except (UnicodeDecodeError, json.JSONDecodeError, OSError) as error:
        raise DataError(f"clean.benchmarks: {path} cannot be read ({error}); give .txt or .jsonl in UTF-8.") from error


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
