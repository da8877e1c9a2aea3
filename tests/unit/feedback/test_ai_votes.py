"""A judge by a constitution: asked both ways round, swayed is no choice, nothing is asked twice, cost is bounded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from raylign.app.commands.feedback_judge import Judged, judge_pairs, judged_lines, require_choices
from raylign.app.commands.judge_open import Who
from raylign.conf.errors import ConfigError, DataError, UserError
from raylign.feedback.ai_votes import Constitution, Verdict, pairs_to_judge, read_choice, verdict
from raylign.feedback.build import read
from raylign.feedback.privacy import redactor_of
from raylign.feedback.settings import BuildSettings
from raylign.feedback.source import Source

from tests.unit.reward.json_server import Asked, Reply, serving

PAIR = re.compile(r"<answer_A>\n(.*)\n</answer_A>\n\n<answer_B>\n(.*)\n</answer_B>", re.DOTALL)


def event(number: int, a: str, b: str, choice: str, **more: object) -> dict[str, object]:
    return {
        "event_id": f"e{number}", "kind": "side_by_side",
        "prompt": [{"role": "user", "content": f"Question {number}?"}], "response_a": a,
        "response_b": b, "choice": choice, "user_id": f"u{number}", **more,
    }  # fmt: skip


def shorter(a: str, b: str) -> str:
    return "I read both.\nChoice: " + ("tie" if len(a) == len(b) else "A" if len(a) < len(b) else "B")


@contextmanager
def judging(how: object) -> Iterator[Asked]:
    """A judge that answers with `how(answer A, answer B)`, or with a Reply as it is."""

    def answer(body: object, number: int) -> Reply:
        a, b = PAIR.search(body["messages"][0]["content"]).groups()  # type: ignore[index,union-attr]
        said = how(a, b) if callable(how) else how
        return said if isinstance(said, Reply) else Reply({"choices": [{"message": {"content": said}}]})

    with serving(answer) as asked:
        yield asked


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rows = [event(i, "short", "a longer answer", "a" if i < 6 else "b") for i in range(8)]
    rows += [event(8, "same size", "size same", "a"), event(9, "x", "yy", "a", consent=False)]
    rows += [{**event(0, "a longer answer", "short", "b"), "event_id": "again", "user_id": "somebody else"}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "short.md").write_text("# Ours\n- Prefer the shorter answer.\n2. Be kind.\n")
    return tmp_path / "log.jsonl"


def run(log: Path, url: str, *, max_calls: int = 0, token_env: str = "", overrides: tuple[str, ...] = ()) -> Judged:
    who = Who(model="wise", url=url, token_env=token_env, deadline_s=10)
    return judge_pairs(Source(logs=(log,), overrides=overrides), log.parent / "short.md", log.parent / "ai.jsonl", who,
                       max_calls=max_calls, tell=lambda said: None)  # fmt: skip


def written(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (log.parent / "ai.jsonl").read_text().splitlines()]


def test_choices_that_both_orders_make_become_events(log: Path) -> None:
    with judging(shorter) as asked:
        found = run(log, asked.url)

    assert (found.pairs, found.asked, len(asked.bodies)) == (9, 18, 18), "one pair twice in the log is one pair"
    assert found.verdicts[Verdict.A] == 8 and found.verdicts[Verdict.TIE] == 1
    rows = written(log)
    assert {row["source"] for row in rows} == {"ai"} and {row["annotator_id"] for row in rows} == {
        f"ai:wise@{found.version}"
    }
    assert [row["choice"] for row in rows] == ["a"] * 8 + ["skipped"]
    assert found.with_people is not None and (found.with_people.value, found.with_people.count) == (6 / 8, 8)
    assert "agrees with people's choices on 75 % of 8 pairs" in "\n".join(judged_lines(found, log))
    text = asked.bodies[0]["messages"][0]["content"]  # type: ignore[index]
    assert "1. Prefer the shorter answer.\n2. Be kind." in text and "Ours" not in text
    built = read(Source(logs=(log.parent / "ai.jsonl",)), BuildSettings()).events
    assert built["annotator_hash"].n_unique() == 1 and built["user_hash"].n_unique() == 9, "splits and forget reach it"


def test_a_judge_that_goes_by_the_place_says_nothing(log: Path) -> None:
    with judging("The first one.\nChoice: A") as asked:
        found = run(log, asked.url)

    assert found.verdicts[Verdict.SWAYED] == 9
    assert {row["choice"] for row in written(log)} == {"skipped"}
    assert found.with_people is None


def test_nothing_is_asked_twice_and_cost_is_bounded(log: Path) -> None:
    with judging(shorter) as asked:
        first = run(log, asked.url, max_calls=5)
        assert (first.asked, first.left, len(written(log))) == (4, 7, 2)
        second = run(log, asked.url, max_calls=6)
        assert (second.asked, second.left, len(written(log))) == (6, 4, 5)
        third = run(log, asked.url)
        assert (third.asked, third.left, len(asked.bodies)) == (8, 0, 18)
        rows = written(log)
        assert run(log, asked.url).asked == 0 and written(log) == rows


@pytest.mark.slow
def test_another_constitution_is_another_judge(log: Path) -> None:
    with judging(shorter) as asked:
        before = run(log, asked.url)
        (log.parent / "short.md").write_text("Prefer the longer answer.\n")
        after = run(log, asked.url)
    assert before.version != after.version and after.asked == 18


def test_calls_that_fail_are_asked_again_and_unreadable_ones_are_not(log: Path) -> None:
    def broken(a: str, b: str) -> object:
        return Reply({"error": "no"}, 400) if len(a) == len(b) else "I cannot decide."

    with judging(broken) as asked:
        found = run(log, asked.url)
        assert (found.failed, found.verdicts[Verdict.UNREADABLE]) == (1, 8)
        assert run(log, asked.url).asked == 2
    assert not (log.parent / "ai.jsonl").exists(), "no log of nothing, which a build would refuse"
    with pytest.raises(DataError, match="no pair has a clear choice, so there is nothing to build with"):
        require_choices(found, log.parent / "ai.jsonl")
    assert any(line.startswith("! 1 pairs have no reply") for line in judged_lines(found, log))


def test_personal_data_do_not_leave_and_the_event_keeps_the_answer(log: Path, tmp_path: Path) -> None:
    row = event(1, "Write to anna@example.org.", "no", "a")
    log.write_text(json.dumps(row) + "\n")
    with judging(shorter) as asked:
        run(log, asked.url)
    assert "anna@example.org" not in json.dumps(asked.bodies)
    assert written(log)[0]["response_a"] == row["response_a"]


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("Choice: A", "a"), ("Both are fine.\n**Choice: B**", "b"), ('{"choice": "tie"}', "tie"),
        ("choice: tie.", "tie"),
        ("Choice: A\nOr perhaps not.", None), ("A", None), ("", None), ("Choice: C", None), ('{"choice": 3}', None),
    ],
)  # fmt: skip
def test_a_choice_is_read_from_the_end_alone(reply: str, choice: str | None) -> None:
    assert read_choice(reply) == choice


def test_two_replies_are_one_verdict() -> None:
    a, b, tie, none = "Choice: A", "Choice: B", "Choice: tie", "?"
    assert [verdict(*two) for two in ((a, b), (b, a), (a, a), (b, b), (a, tie), (tie, tie), (a, none))] == [
        Verdict.A, Verdict.B, Verdict.SWAYED, Verdict.SWAYED, Verdict.TIE, Verdict.TIE, Verdict.UNREADABLE,
    ]  # fmt: skip


def test_what_cannot_be_judged_is_one_sentence(log: Path, tmp_path: Path) -> None:
    (tmp_path / "thumbs.jsonl").write_text(
        json.dumps({"event_id": "t", "kind": "thumb", "prompt": [{"role": "user", "content": "Hi"}],
                    "response_a": "Hello", "thumb": 1}) + "\n"
    )  # fmt: skip
    with pytest.raises(DataError, match="no two answers stand side by side"):
        run(tmp_path / "thumbs.jsonl", "http://127.0.0.1:9/v1")
    (tmp_path / "empty.md").write_text("# nothing\n")
    with pytest.raises(UserError, match="it holds no principle"):
        Constitution.read(tmp_path / "empty.md")
    with pytest.raises(UserError, match="cannot be read"):
        Constitution.read(tmp_path / "none.md")
    with pytest.raises(ConfigError, match="token_env=NOT_THERE_AT_ALL"):
        run(log, "http://127.0.0.1:9/v1", token_env="NOT_THERE_AT_ALL")
    events = read(Source(logs=(log,)), BuildSettings()).events
    assert len(pairs_to_judge(events, redactor_of(BuildSettings().privacy).shown)) == 9
