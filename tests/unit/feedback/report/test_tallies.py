"""Counts by model that can be recounted by hand."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import polars as pl
from raylign.feedback.events import EVENT_SCHEMA
from raylign.feedback.report import render
from raylign.feedback.report.tallies import quality, thumbs_over_time, win_matrix

START = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday


def frame(*given: dict) -> pl.DataFrame:
    """Events of the few fields given."""
    turns = [{"role": "user", "content": "q"}]
    about = [
        {"event_id": f"e{n}", "source": "native", "source_row": n, "prompt": turns, "response_a": f"answer {n}"}
        for n in range(len(given))
    ]
    rows = [
        {name: {**base, **fields}.get(name) for name in EVENT_SCHEMA} for base, fields in zip(about, given, strict=True)
    ]
    return pl.DataFrame(rows, schema=EVENT_SCHEMA)


def choice(a: str | None, b: str | None, said: str) -> dict:
    return {"kind": "side_by_side", "response_b": "other", "model_a": a, "model_b": b, "choice": said}


def thumb(model: str | None, said: int, day: int) -> dict:
    return {"kind": "thumb", "thumb": said, "model_a": model, "time": START + timedelta(days=day)}


def test_wins_are_counted_from_either_side_and_ties_are_none():
    events = frame(
        choice("x", "y", "a"), choice("y", "x", "b"), choice("y", "x", "a"), choice("x", "y", "both_good"),
        choice("x", "x", "a"), choice(None, "x", "b"), choice("z", "y", "b"),
    )  # fmt: skip
    found = win_matrix(events)
    assert found is not None
    assert found.head == ("y", "x", "z")
    assert dict(found.lines) == {
        "y": ("\u2013", "1 of 3", "1 of 1"),
        "x": ("2 of 3", "\u2013", "\u2013"),
        "z": ("0 of 1", "\u2013", "\u2013"),
    }


def test_thumbs_are_told_by_model_and_week():
    events = frame(thumb("x", 1, 0), thumb("x", -1, 6), thumb("x", 1, 7), thumb(None, 1, 8))
    found = thumbs_over_time(events)
    assert found is not None
    assert found.head == ("02 Mar 26", "09 Mar 26")
    assert dict(found.lines)["x"] == ("50\u00a0% of 2", "100\u00a0% of 1")
    assert dict(found.lines)["(not given)"] == ("\u2013", "100\u00a0% of 1")


def test_long_logs_go_by_month_and_show_the_last_ones():
    found = thumbs_over_time(frame(*(thumb("x", 1, 31 * n) for n in range(12))))
    assert found is not None
    assert len(found.head) == 8
    assert found.head[-1] == "Feb 27"


def test_nothing_to_count_is_no_table():
    assert win_matrix(frame(thumb("x", 1, 0))) is None
    assert thumbs_over_time(frame(choice("x", "y", "a"))) is None


def test_what_a_log_does_not_name_is_not_known_instead_of_none():
    """HH-style data: choices of nobody, in no conversation."""
    page = render(None, frame(choice(None, None, "a")))
    shown = dict(re.findall(r"<dt>([^<]*)</dt><dd[^>]*>([^<]*)</dd>", page))
    assert (shown["pieces of feedback"], shown["people"], shown["conversations"]) == ("1", "not known", "not known")


def test_quality_is_told_by_group_the_worst_first_and_small_groups_are_not_shown():
    school, work, few = {"topic": "school"}, {"topic": "work"}, {"topic": "few"}
    rated = {"kind": "rating", "rating": 0.25}
    events = frame(
        *(thumb("x", said, 0) | work for said in (1, 1, 1, -1)), choice("x", "y", "both_good") | work,
        *(thumb("x", -1, 0) | school for _ in range(3)), rated | school, choice("x", "y", "both_bad") | school,
        choice("x", "y", "skipped") | school, thumb("x", 1, 0) | few,
    )  # fmt: skip
    (found,) = quality(events)
    assert found.of == "Topic" and found.head == ("thumbs up", "mean rating", "both answers bad")
    assert found.lines == (
        ("school", ("0\u00a0% of 3", "0.25 of 1", "100\u00a0% of 1")),
        ("work", ("75\u00a0% of 4", "\u2013", "0\u00a0% of 1")),
    )
    assert "1 groups with fewer" in found.note
    assert quality(frame(thumb("x", 1, 0))) == ()
