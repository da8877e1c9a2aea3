"""The order in which a working frame is cleaned, and candidate rows after it."""

from __future__ import annotations

import numpy as np
import polars as pl
from raylign.feedback.clean.answers import is_refusal, quality_rules
from raylign.feedback.clean.contamination import benchmark_texts, drop_contaminated
from raylign.feedback.clean.language import drop_other_languages
from raylign.feedback.clean.repeats import drop_above_caps, drop_near_duplicates
from raylign.feedback.clean.similarity import clusters_and_stories
from raylign.feedback.clean.unusable import drop_repeated_events, drop_second_thoughts, drop_unusable
from raylign.feedback.corrections import find_corrections, find_edits
from raylign.feedback.filtering import apply_row_rules, of_each_row
from raylign.feedback.ledger import Ledger
from raylign.feedback.reviews import drop_reviewed
from raylign.feedback.settings import BuildSettings
from raylign.feedback.splits import add_split, drop_overlap
from raylign.feedback.turns import user_text
from raylign.feedback.working import found_in_conversation


def clean_events(
    work: pl.DataFrame,
    settings: BuildSettings,
    ledger: Ledger,
    wrong: frozenset[str] = frozenset(),
    corrections: frozenset[str] = frozenset(),
) -> pl.DataFrame:
    """Redacted events without what is unusable, repeated, contaminated or in another language.

    `wrong`: ids of events that reviews mark as wrong; `corrections`: keys of turns that a model calls corrections.
    Corrections found in conversations are added. Has `row_order` [rows], the order of time.
    """
    chosen = settings.clean
    work = ledger.events(drop_unusable(work, trivial_edits=chosen.trivial_edits))
    work = ledger.events(drop_second_thoughts(work))
    work = ledger.events(drop_repeated_events(work))
    # After the two above: what stands behind a judgement that was marked wrong does not come back in its place.
    work = ledger.events(drop_reviewed(work, wrong)).with_row_index("row_order")
    found = [
        find_corrections(work, good_rating=settings.ratings.good, told=corrections),
        find_edits(work, good_rating=settings.ratings.good),
    ]
    work = pl.concat([work, *found]).sort("row_order", maintain_order=True)
    if chosen.benchmarks:
        texts = benchmark_texts(chosen.benchmarks)
        work = ledger.events(drop_contaminated(work, texts, ngram=chosen.benchmark_ngram))
    if chosen.languages:
        work = ledger.events(drop_other_languages(work, chosen.languages))
    return work


def place_events(work: pl.DataFrame, settings: BuildSettings, ledger: Ledger) -> pl.DataFrame:
    """Events with `prompt_id`, `cluster` and `split`, without those whose question belongs to another split."""
    prompts = work.select("prompt").unique(maintain_order=True).with_row_index("prompt_id")
    said = of_each_row(prompts, user_text(pl.col("prompt")))
    near = settings.clean.near_duplicates
    groups = stories = np.arange(len(said))
    if near:
        groups, stories = clusters_and_stories(said, settings.clean.near_threshold, settings.split.near_threshold)
    prompts = prompts.with_columns(
        cluster=pl.Series(groups.astype(np.uint32)), story=pl.Series(stories.astype(np.uint32))
    )
    work = work.join(prompts, on="prompt", how="left", maintain_order="left")
    return _with_their_events(ledger.events(drop_overlap(add_split(work, settings.split)))).drop("story")


def _with_their_events(work: pl.DataFrame) -> pl.DataFrame:
    """Without corrections found in conversations of which an event has been dropped: it may not come back by them."""
    found = work.with_row_index("number").filter(found_in_conversation())
    present = work.filter(~found_in_conversation()).select("event_id")
    named = found.select("number", event_id="events").explode("event_id")
    orphans = named.join(present, on="event_id", how="anti").select("number").unique()
    return work.with_row_index("number").join(orphans, on="number", how="anti", maintain_order="left").drop("number")


def clean_rows(kind: str, rows: pl.DataFrame, settings: BuildSettings, ledger: Ledger) -> pl.DataFrame:
    """Candidate rows of one kind without what should not be learned from, the heaviest first."""
    chosen = settings.clean
    rules: dict[str, pl.Expr] = {}
    # Only what the model is to imitate matters: a disliked refusal is a good lesson, a preferred one may be.
    refused = is_refusal(pl.col("answer"))
    if kind == "sft" and chosen.refusals:
        rules["refusal"] = refused
    if kind == "teacher" and chosen.refusals:
        rules["refusal"] = refused & pl.col("rules").list.contains("correction")
    if kind == "kto" and chosen.refusals:
        rules["refusal"] = refused & pl.col("label")
    if kind == "pairs" and chosen.refusals_in_pairs:
        rules["refusal"] = refused
    if kind == "sft":
        rules["cut_off"] = pl.col("answer_cut")
        rules |= quality_rules(
            min_chars=settings.sft.min_chars,
            max_chars=settings.sft.max_chars,
            min_distinct_words=settings.sft.min_distinct_words,
        )
    rows = ledger.rows(kind, apply_row_rules(rows, rules))
    rows = rows.sort("weight", "row_order", descending=[True, False], maintain_order=True)
    if chosen.near_duplicates:
        rows = ledger.rows(kind, drop_near_duplicates(rows))
    capped = drop_above_caps(rows, per_user=chosen.rows_per_user, per_prompt=chosen.rows_per_prompt)
    return ledger.rows(kind, capped)
