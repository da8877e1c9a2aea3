"""Puts the page together. All text from a log is escaped by the template; only our own SVG is not.

The page holds no time and no path of this machine: the same log and settings give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
from raylign.feedback.build_result import BuildResult
from raylign.feedback.report.built import built
from raylign.feedback.report.comments import comments_of, judgements_of
from raylign.feedback.report.incoming import incoming
from raylign.feedback.report.models import slices, tables
from raylign.feedback.report.tallies import quality, thumbs_over_time, win_matrix
from raylign.feedback.report.trust_panels import cards, flagged_people, length_rows, people_rows, to_do
from raylign.feedback.report.verdict import advice, judge
from raylign.feedback.trust.summary import Trust, measure_trust
from raylign.feedback.turns import pack
from raylign.pages.frame import render_page
from raylign.records.atomic import write_atomic

_HERE = Path(__file__).parent


def write_report(folder: Path, result: BuildResult | None, events: pl.DataFrame) -> Path:
    """Write `<folder>/report.html` and return its path.

    `events` (EVENT_SCHEMA) are all that were read. Without a `result` the page is about the log alone, and shows no
    text of it: only a build has its texts redacted.
    """
    path = folder / "report.html"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, render(result, events))
    return path


def render(result: BuildResult | None, events: pl.DataFrame, *, trust: Trust | None = None) -> str:
    """The page's text; `trust` is `measure_trust(events)` where it is at hand."""
    trust = trust or measure_trust(events)
    came = incoming(events)
    shown = cards(trust)
    packed = events if events.schema["prompt"] == pl.String else events.with_columns(pack(pl.col("prompt")))
    values = {
        "verdict": judge(trust, came, result),
        "came": came,
        "built": built(result) if result else None,
        "trust": trust,
        "cards": shown,
        "length_rows": length_rows(trust.length),
        "flagged": flagged_people(trust.annotators),
        "people": people_rows(trust.annotators),
        "tables": tables(trust),
        "wins": win_matrix(events),
        "thumbs": thumbs_over_time(events),
        "quality": quality(events),
        "comments": comments_of(packed) if result else None,
        "theirs": judgements_of(packed, [person.rater for person in trust.annotators.flagged]) if result else {},
        "slices": slices(trust),
        "advice": (*to_do(trust, shown), *advice(trust)),
    }
    return render_page(_HERE / "report.html", values, styles=(_HERE / "report.css",))
