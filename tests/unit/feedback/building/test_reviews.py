"""What somebody marked as wrong makes no row in the next build, and nothing that is no review is passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raylign.conf.errors import DataError
from raylign.feedback.build import build
from raylign.feedback.forget import forget
from raylign.feedback.reviews import Review, Verdict, append_review, marked_wrong
from raylign.feedback.source import Source


@pytest.fixture
def log(make, tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    events = [make(n, "thumb", thumb=1 if n % 2 else -1) for n in range(12)]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_the_next_build_uses_nothing_that_was_marked(log: Path, tmp_path: Path, built_type):
    reviews = tmp_path / "reviews.jsonl"
    append_review(reviews, Review(("e1", "e2"), Verdict.WRONG, "a slip"))
    append_review(reviews, Review(("e2",), Verdict.RIGHT))
    source = Source(logs=(log, reviews))
    built = built_type(tmp_path / "out", build(source, tmp_path / "out", with_report=False))
    used = {event for kind in ("sft", "pairs", "kto") for row in built.rows(kind) for event in row["events"]}
    assert built.dropped == {"e1": "reviewed_wrong"} and used == {f"e{n}" for n in range(12)} - {"e1"}
    assert built.result.rows_in == 12 and "reviews.jsonl" in {file.name for file in built.result.inputs}
    assert not any("reviews" in warning for warning in built.result.warnings)
    append_review(reviews, Review(("gone",), Verdict.WRONG))
    again = forget(tmp_path / "out", events=["e5"], with_report=False)  # a rebuild still knows of the marks
    assert {drop.rule: drop.events for drop in again.event_drops} == {"forgotten": 1, "reviewed_wrong": 1}
    assert "1 of the events that reviews mark as wrong are not in these logs." in again.warnings


def test_what_was_judged_before_does_not_come_back_in_place_of_a_marked_event(make, tmp_path: Path, built_type):
    log, reviews = tmp_path / "log.jsonl", tmp_path / "reviews.jsonl"
    said = []
    for number, thumb in ((1, 1), (2, -1)):
        event = make(number, "thumb", "one question", thumb=thumb)
        said.append(event | {"response_a": "one answer", "user_id": "u"})
    log.write_text("".join(json.dumps(event) + "\n" for event in [*said, make(3, "thumb", thumb=1)]))
    append_review(reviews, Review(("e2",), Verdict.WRONG))
    out = tmp_path / "out"
    built = built_type(out, build(Source(logs=(log, reviews)), out, with_report=False))
    assert built.dropped == {"e1": "second_thought", "e2": "reviewed_wrong"}


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "review", "reviews": "e1", "verdict": "wrong"}',
        '{"kind": "review", "reviews": ["e1"], "verdict": "bad"}',
        '{"kind": "thumb"}',
        "{broken",
    ],
)
def test_a_line_that_is_no_review_is_refused(tmp_path: Path, line: str):
    reviews = tmp_path / "reviews.jsonl"
    append_review(reviews, Review(("e1",), Verdict.WRONG))
    reviews.write_text(reviews.read_text() + line + "\n")
    with pytest.raises(DataError, match="line 2: not a review"):
        marked_wrong([reviews])


def test_reviews_alone_are_no_log(tmp_path: Path):
    reviews = tmp_path / "reviews.jsonl"
    append_review(reviews, Review(("e1",), Verdict.WRONG))
    with pytest.raises(DataError, match="name the logs whose events they speak of"):
        build(Source(logs=(reviews,)), tmp_path / "out", with_report=False)
    assert reviews.stat().st_mode & 0o077 == 0
