"""`raylign feedback prompts`: a model writes more prompts of the kind of some seeds; what is new is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.app.commands.judge_open import (
    Tell,
    Who,
    open_model,
    require_some,
    sample_of,
    unanswered_lines,
    write_rows,
)
from raylign.app.commands.seed_rows import last_question, prompts_in
from raylign.conf.errors import DataError
from raylign.feedback.ai_prompts import PER_CALL, RUBRIC, SHOWN, Sifted, read_prompts, shown_seeds, sift
from raylign.feedback.ai_votes import Redact
from raylign.feedback.clean.contamination import benchmark_texts
from raylign.records.model_names import short_model
from raylign.reward.judge import Rubric

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


def make_prompts(settings: PromptSettings, who: Who, redact: Redact, tell: Tell) -> PromptsMade:
    """Ask until `count` prompts are new or `max_calls` requests are made, and write them as rows with a prompt.

    The same call asks the same, so what has been answered is not asked again. Raises UserError, ConfigError, DataError.
    """
    questions = dict.fromkeys(last_question(turns) for turns in prompts_in(settings.seeds))
    seeds = [text for (text,) in redact([(seed,) for seed in questions])]
    if len(seeds) < SHOWN:
        raise DataError(f"{settings.seeds}: {len(seeds)} prompts are too few to show {SHOWN} of them; give more.")
    benchmark = benchmark_texts(settings.benchmarks)
    made: list[str] = []
    requests, failed = 0, 0
    sifted = Sifted((), 0, 0)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with open_model(who, settings.out.with_name(f"{settings.out.name}.asked"), "feedback prompts", tell) as model:
        asking = model.asking(Rubric.of(RUBRIC))
        while len(sifted.kept) < settings.count and requests < settings.max_calls:
            numbers = range(requests, min(requests + AT_ONCE, settings.max_calls))
            samples = [sample_of("", shown_seeds(seeds, n, seed=settings.seed)) for n in numbers]
            asking.ask(samples)
            replies = [asking.reply(sample) for sample in samples]
            failed += replies.count(None)
            made += [prompt for reply in replies if reply is not None for prompt in read_prompts(reply)]
            requests += len(samples)
            sifted = sift(made, seeds, benchmark, near=settings.near, ngram=settings.ngram)
            tell(f"{requests:,} requests, {len(sifted.kept):,} new prompts")
    kept = sifted.kept[: settings.count]
    write_rows(settings.out, [{"prompt": one, "source": "ai", "writer": short_model(who.model)} for one in kept])
    found = Sifted(kept, sifted.near, sifted.contaminated)
    return PromptsMade(len(seeds), requests, asking.asked, len(made), found, failed, asking.why_failed)


def require_prompts(found: PromptsMade, out: Path) -> None:
    """Raises DataError when none is new."""
    require_some(
        len(found.sifted.kept), out, "no reply holds a new prompt",
        "see the replies beside it (.asked), and give a stronger --model, more seeds or a larger --near",
    )  # fmt: skip


def prompts_lines(found: PromptsMade, out: Path) -> list[str]:
    """What came of it, for a terminal."""
    sifted = found.sifted
    lines = [
        f"{found.requests:,} requests ({found.asked:,} new calls) for {PER_CALL} prompts each, {found.seeds:,} seeds",
        f"{found.written:,} prompts came back; {sifted.contaminated:,} overlap with a benchmark, {sifted.near:,} are "
        f"near a seed or an earlier one; {len(sifted.kept):,} are written",
    ]
    lines += unanswered_lines("requests", found.failed, found.why_failed)
    return [*lines, f"prompts: {out}"] if sifted.kept else lines
