"""The latest word of a person counts, in rows and in statistics; exports that overlap are merged. GOOD is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raylign.app.cli import app, run_command
from raylign.feedback.importers import read_log
from raylign.feedback.trust.judgements import judgements, one_each

ALL_TRAIN = ("split.eval=0", "split.test=0")
UP, DOWN = 1, -1


def thumb(make, number: int, value: int, **fields: object) -> dict[str, object]:
    return make(number, "thumb", "q", response_a="GOOD", thumb=value, **({"user_id": "u"} | fields))


def test_a_changed_thumb_counts_as_it_was_last(make, run_build):
    liked = [make(1, "thumb", "q1", response_a="GOOD", thumb=DOWN, user_id="u"),
             make(2, "thumb", "q1", response_a="GOOD", thumb=UP, user_id="u")]  # fmt: skip
    disliked = [make(n + 10, "thumb", "q2", response_a="BAD", thumb=t, user_id="v") for n, t in enumerate((UP, DOWN))]
    built = run_build([*liked, *disliked], *ALL_TRAIN)
    assert built.dropped == {"e1": "second_thought", "e10": "second_thought"}
    assert {(row["completion"][0]["content"], row["label"]) for row in built.rows("kto")} == {
        ("GOOD", True),
        ("BAD", False),
    }
    assert [row["messages"][-1]["content"] for row in built.rows("sft")] == ["GOOD"]


@pytest.mark.parametrize(
    ("values", "dropped", "label"),
    [
        ((UP, DOWN, UP), {"e0", "e1"}, True),
        ((DOWN, UP, UP), {"e0", "e2"}, True),  # the last is the one before it again
        ((UP, UP, DOWN), {"e0", "e1"}, False),
        ((UP, DOWN, DOWN, UP), {"e0", "e1", "e2"}, True),
    ],
)
def test_whoever_goes_to_and_fro_is_taken_at_the_last_word(make, run_build, values, dropped, label):
    built = run_build([thumb(make, n, value) for n, value in enumerate(values)], *ALL_TRAIN)
    assert set(built.dropped) == dropped
    assert [row["label"] for row in built.rows("kto")] == [label]


def test_a_changed_vote_counts_once_whichever_side_the_answers_stood_on(make, run_build):
    def vote(number: int, user: str, choice: str, *, swapped: bool = False) -> dict[str, object]:
        sides = ("BAD", "GOOD") if swapped else ("GOOD", "BAD")
        return make(number, "side_by_side", "q", response_a=sides[0], response_b=sides[1], choice=choice, user_id=user)

    built = run_build([vote(1, "u", "b"), vote(2, "u", "b", swapped=True), vote(3, "v", "a")], *ALL_TRAIN)
    (row,) = built.rows("pairs")
    assert (row["chosen"][0]["content"], row["weight"]) == ("GOOD", 1.0)
    assert built.dropped == {"e1": "second_thought"}
    both = run_build([vote(1, "u", "a"), vote(2, "u", "both_bad")], *ALL_TRAIN)
    assert both.rows("pairs") == [] and both.dropped == {"e1": "second_thought", "e2": "tie_both_bad"}


def test_rows_and_statistics_take_the_same_votes(make, run_build, tmp_path: Path):
    votes = [make(n, "side_by_side", f"q{n % 7}", response_a=f"x{n % 7}", response_b=f"y{n % 7}", user_id=f"u{n % 3}",
                  choice="ab"[n * n % 5 % 2]) for n in range(60)]  # fmt: skip
    built = run_build(votes, *ALL_TRAIN)
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    latest = set(one_each(judgements(read_log([log], user_salt="s").events))["event_id"])
    gone = {event for event, rule in built.dropped.items() if rule in ("second_thought", "duplicate_event")}
    counted = {f"e{n}" for n in range(60)} - gone
    picked = {vote["event_id"]: (vote["prompt"][0]["content"], vote["user_id"], vote["choice"]) for vote in votes}
    assert {picked[event] for event in counted} == {picked[event] for event in latest}
    assert len(counted) == len(latest) == 21


def test_a_changed_rating_or_correction_counts_as_it_was_last(make, run_build):
    about = {"response_a": "BAD", "user_id": "u"}
    rated = [make(n, "rating", "q", rating=rating, **about) for n, rating in ((1, 1.0), (2, 0.0))]
    assert [row["label"] for row in run_build(rated, *ALL_TRAIN).rows("kto")] == [False]
    thumbed = [make(1, "thumb", "q", thumb=UP, **about), make(2, "rating", "q", rating=0.0, **about)]
    assert run_build(thumbed, *ALL_TRAIN).rows("sft") == []
    written = [make(n, "correction", "q", corrected=text, **about) for n, text in ((1, "FIRST TRY"), (2, "GOOD ONE"))]
    built = run_build(written, *ALL_TRAIN)
    assert [row["messages"][-1]["content"] for row in built.rows("sft")] == ["GOOD ONE"]


def test_what_is_no_second_thought(make, run_build):
    other_person = [thumb(make, 1, UP, user_id="u"), thumb(make, 2, DOWN, user_id="v")]
    other_score = [thumb(make, 1, UP, score="helpful"), thumb(make, 2, DOWN, score="correct")]
    same_moment = [thumb(make, 1, UP), thumb(make, 2, DOWN) | {"time": thumb(make, 1, UP)["time"]}]
    no_time = [thumb(make, n, value, time=None) for n, value in ((1, UP), (2, DOWN))]
    nobody = [thumb(make, n, value, user_id=None) for n, value in ((1, UP), (2, DOWN))]
    for events in (other_person, other_score, same_moment, no_time, nobody):
        assert run_build(events, *ALL_TRAIN).dropped == {"e1": "mixed_verdict", "e2": "mixed_verdict"}
    talk = [thumb(make, n, value, user_id=None, conversation_id="c") for n, value in ((1, UP), (2, DOWN))]
    assert run_build(talk, *ALL_TRAIN).dropped == {"e1": "second_thought"}


@pytest.mark.parametrize("newer_first", [False, True])
def test_of_overlapping_exports_the_later_version_of_an_event_counts(make, tmp_path: Path, newer_first: bool):
    older = [thumb(make, n, UP) for n in (1, 2, 3)]
    newer = [thumb(make, 2, UP), thumb(make, 3, DOWN) | {"time": "2026-03-02T00:00:00Z"}, thumb(make, 4, UP)]
    order = (newer, older) if newer_first else (older, newer)
    for name, events in zip("ab", order, strict=True):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    result = read_log([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], user_salt="s")
    assert dict(result.events.select("event_id", "thumb").rows()) == {"e1": UP, "e2": UP, "e3": DOWN, "e4": UP}
    first, second = sorted(result.quarantined["reason"])
    assert first.endswith("already")
    kept = "was in a.jsonl, line 2, already" if newer_first else "is in b.jsonl, line 2 as it was last"
    assert second == f"duplicate id `e3`: it {kept}"


def test_a_score_changed_between_two_exports_counts_as_changed(tmp_path: Path):
    """The moment of its making stays; only the tool's own time of the last change tells."""
    traces = tmp_path / "traces.jsonl"
    traces.write_text(json.dumps({"id": "t1", "input": "q", "output": "GOOD"}) + "\n")
    for name, value, updated in (("a", 1, "2026-03-05"), ("b", 0, "2026-03-01")):
        score = {"id": "s1", "traceId": "t1", "name": "thumbs", "value": value, "dataType": "BOOLEAN"}
        score |= {"timestamp": "2026-03-01T00:00:00Z", "updatedAt": f"{updated}T00:00:00Z"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(score) + "\n")
    logs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for order in (logs, logs[::-1]):
        assert read_log(order, companion=traces, user_salt="s").events["thumb"].to_list() == [UP]


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run_command(lambda: app(["feedback", *map(str, arguments)]))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def aside(make) -> list[dict[str, object]]:
    return [make(n, "thumb", thumb=5) for n in range(3)]


def no_consent(make) -> list[dict[str, object]]:
    return [make(n, "thumb", thumb=1, consent=False) for n in range(3)]


def ties(make) -> list[dict[str, object]]:
    return [make(n, "side_by_side", response_b="x", choice="skipped") for n in range(3)]


def undecided(make) -> list[dict[str, object]]:
    return [thumb(make, n, value, user_id=f"u{n}") for n, value in enumerate((UP, DOWN))]


def between(make) -> list[dict[str, object]]:
    return [make(n, "rating", rating=0.5) for n in range(3)]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (aside, "3 of 3 quarantined: unknown thumb"),
        (no_consent, "3 dropped by no_consent: The person did not agree"),
        (ties, "3 dropped by skipped_choice"),
        (undecided, "2 dropped by mixed_verdict"),
        (between, "3 dropped by rating_in_between"),
    ],
)
def test_nothing_used_is_no_success(make, capsys, tmp_path: Path, events, said: str):
    log, out = tmp_path / "log.jsonl", tmp_path / "out"
    log.write_text("".join(json.dumps(event) + "\n" for event in events(make)))
    code, _, told = command(capsys, "build", log, "--out", out)
    assert code == 2
    assert told.startswith("No row could be made: ") and said in told
    page = (out / "report.html").read_text()
    assert "<h1>No row could be made: " in page
    assert "No row could be made: " in (out / "card.md").read_text()


@pytest.mark.slow
def test_scores_are_shown_and_told_on_the_command_line(capsys, tmp_path: Path):
    scores, traces, out = tmp_path / "scores.jsonl", tmp_path / "traces.jsonl", tmp_path / "out"
    rows = [
        {"id": f"s{n}", "traceId": f"t{n}", "name": "stars", "value": 1 + n % 5, "dataType": "NUMERIC"}
        for n in range(10)
    ]
    asked = [
        {"id": f"t{n}", "input": f"question {n}", "output": f"{'GOOD' if n % 5 > 2 else 'BAD'} {n}"} for n in range(10)
    ]
    for path, content in ((scores, rows), (traces, asked)):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    code, text, _ = command(capsys, "inspect", scores, "--companion", traces)
    assert code == 0 and "known here" in text and "quarantined" in " ".join(text.split())
    code, _, told = command(capsys, "build", scores, "--companion", traces, "--out", out)
    assert code == 2 and "say reading.scores={stars: {scale: [1, 5], good: high}} (10)" in told
    setting = "reading.scores={stars: {scale: [1, 5], good: high}}"
    code, _, told = command(
        capsys, "build", scores, "--companion", traces, "--out", tmp_path / "read", setting, *ALL_TRAIN
    )
    assert code == 0, told
    sft = (tmp_path / "read" / "sft" / "train.jsonl").read_text()
    assert sft.count("GOOD") == 4 and "BAD" not in sft
    for name in ("card.md", "report.html", "build.json"):
        assert "set by reading.scores" in (tmp_path / "read" / name).read_text()
