"""`raylign feedback prompts`: a model writes more prompts of the kind of some seeds; what is new is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from raylign.app.commands.judge_open import Tell, Who, open_judge
from raylign.conf.errors import DataError
from raylign.data.loading import RawRow, read_rows
from raylign.feedback.ai_prompts import PER_CALL, RUBRIC, SHOWN, Sifted, read_prompts, shown_seeds, sift
from raylign.feedback.clean.contamination import benchmark_texts
from raylign.feedback.clean.personal_data import redact_text
from raylign.records.atomic import write_atomic
from raylign.records.model_names import short_model
from raylign.reward.judge import Rubric
from raylign.reward.samples import Sample

AT_ONCE = 50
"""Requests between two looks at how many are new."""


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """What is wanted."""

    seeds: str  # rows with a prompt
    out: Path
    count: int
    max_calls: int
    benchmarks: Sequence[str] = ()
    near: float = 0.6
    ngram: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PromptsMade:
    """What came of it."""

    seeds: int
    requests: int
    asked: int  # new calls
    written: int  # prompts in all replies
    sifted: Sifted
    failed: int
    why_failed: str


def make_prompts(settings: PromptSettings, who: Who, tell: Tell) -> PromptsMade:
    """Ask until `count` prompts are new or `max_calls` requests are made, and write them as rows with a prompt.

    The same call asks the same, so what has been answered is not asked again. Raises UserError, ConfigError, DataError.
    """
    seeds = [redact_text(seed) for seed in _seeds(settings.seeds)]
    if len(seeds) < SHOWN:
        raise DataError(f"{settings.seeds}: {len(seeds)} prompts are too few to show {SHOWN} of them; give more.")
    benchmark = benchmark_texts(settings.benchmarks) if settings.benchmarks else pl.Series([], dtype=pl.String)
    kept_in = settings.out.with_name(f"{settings.out.name}.asked")
    kept_in.mkdir(parents=True, exist_ok=True)
    judge, asker, cache = open_judge(who, Rubric.of(RUBRIC), kept_in, "feedback prompts", tell)
    made: list[str] = []
    requests, asked, failed, why = 0, 0, 0, ""
    sifted = Sifted((), 0, 0)
    while len(sifted.kept) < settings.count and requests < settings.max_calls:
        numbers = range(requests, min(requests + AT_ONCE, settings.max_calls))
        samples = [Sample("", shown_seeds(seeds, n, seed=settings.seed), (), (), "", None, {}) for n in numbers]
        asked += len({judge.key(sample) for sample in samples if cache.get(judge.key(sample)) is None})
        reasons = asker.ask(samples)
        for sample in samples:
            reply = cache.get(judge.key(sample))
            if reply is None:
                failed, why = failed + 1, next(iter(reasons.values()), "no reply")
            else:
                made += read_prompts(reply)
        requests += len(samples)
        sifted = sift(made, seeds, benchmark, near=settings.near, ngram=settings.ngram)
        tell(f"{requests:,} requests, {len(sifted.kept):,} new prompts")
    kept = sifted.kept[: settings.count]
    rows = [{"prompt": prompt, "source": "ai", "writer": short_model(who.model)} for prompt in kept]
    write_atomic(settings.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    found = Sifted(kept, sifted.near, sifted.contaminated)
    return PromptsMade(len(seeds), requests, asked, len(made), found, failed, why)


def prompts_lines(found: PromptsMade, out: Path) -> list[str]:
    """What came of it, for a terminal."""
    sifted = found.sifted
    lines = [
        f"{found.requests:,} requests ({found.asked:,} new calls) for {PER_CALL} prompts each, {found.seeds:,} seeds",
        f"{found.written:,} prompts came back; {sifted.contaminated:,} overlap with a benchmark, {sifted.near:,} are "
        f"near a seed or an earlier one; {len(sifted.kept):,} are written",
    ]
    if found.failed:
        lines.append(
            f"! {found.failed:,} requests have no reply ({found.why_failed}); the same command asks them again"
        )
    return [*lines, f"prompts: {out}"]


def _seeds(source: str) -> list[str]:
    """The prompts of rows, by their text or last user turn."""
    found = []
    for row in read_rows(source):
        given = row.columns.get("prompt") if isinstance(row, RawRow) else None
        if isinstance(given, list):
            given = next(
                (t.get("content") for t in reversed(given) if isinstance(t, dict) and t.get("role") == "user"), ""
            )
        if isinstance(given, str) and given.strip():
            found.append(given.strip())
    return list(dict.fromkeys(found))
