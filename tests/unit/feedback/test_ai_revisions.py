"""Revisions by a constitution: kept where preferred in both places, bounded, asked once, corrections in a build."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from raylign.app.commands.feedback_revise import Revised, require_revisions, revise_answers, revised_lines
from raylign.app.commands.judge_open import Who
from raylign.conf.errors import DataError
from raylign.feedback.ai_revisions import read_revision
from raylign.feedback.build import build
from raylign.feedback.source import Source

from tests.unit.reward.json_server import Asked, Reply, serving

PAIR = re.compile(r"<answer_A>\n(.*)\n</answer_A>\n\n<answer_B>\n(.*)\n</answer_B>", re.DOTALL)
ONE = re.compile(r"<answer>\n(.*)\n</answer>", re.DOTALL)


def thumb(n: int, answer: str, up: int, **more: object) -> dict[str, object]:
    return {"event_id": f"t{n}", "kind": "thumb", "prompt": [{"role": "user", "content": f"Question {n}, please?"}],
            "response_a": answer, "thumb": up, "user_id": f"u{n}", **more}  # fmt: skip


@contextmanager
def model(revise: object, *, by_place: bool = False) -> Iterator[Asked]:
    """Revises by `revise(answer)`, and prefers what says GOOD; with `by_place` always the first."""

    def answer(body: object, number: int) -> Reply:
        text = body["messages"][0]["content"]  # type: ignore[index]
        if pair := PAIR.search(text):
            said = "Choice: A" if by_place or "GOOD" in pair[1] else "Choice: B"
        else:
            said = revise(ONE.search(text)[1])  # type: ignore[operator,index]
        return said if isinstance(said, Reply) else Reply({"choices": [{"message": {"content": said}}]})

    with serving(answer) as asked:
        yield asked


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rows = [thumb(n, f"A poor answer to number {n}.", -1) for n in range(4)]
    rows += [thumb(8, "A fine answer, says the person.", 1), thumb(9, "Not to be used.", -1, consent=False)]
    rows += [{**thumb(0, "A poor answer to number 0.", -1), "event_id": "again", "user_id": "other"}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "good.md").write_text("- Say what is good.\n")
    return tmp_path / "log.jsonl"


def run(log: Path, url: str, *, max_calls: int = 0, everything: bool = False) -> Revised:
    who = Who(model="wise", url=url, deadline_s=10)
    return revise_answers(Source(logs=(log,)), log.parent / "good.md", log.parent / "ai.jsonl", who,
                          everything=everything, max_calls=max_calls, tell=lambda said: None)  # fmt: skip


def written(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (log.parent / "ai.jsonl").read_text().splitlines()]


def better(answer: str) -> str:
    return f"It is not good.\n\n**Revision:**\nGOOD words instead of: {answer[:20]}\nand a second line"


def test_preferred_revisions_become_corrections_that_a_build_reads(log: Path, tmp_path: Path) -> None:
    with model(better) as asked:
        found = run(log, asked.url)
    assert (found.answers, found.kept, found.asked) == (4, 4, 12)
    first = written(log)[0]
    assert (first["kind"], first["source"], first["response_a"]) == ("correction", "ai", "A poor answer to number 0.")
    assert str(first["corrected"]).startswith("GOOD words") and str(first["corrected"]).endswith("and a second line")
    assert first["comment"] == "It is not good." and str(first["annotator_id"]).startswith("ai:wise@")

    result = build(Source(logs=(log, log.parent / "ai.jsonl"), overrides=("split.eval=0", "split.test=0")),
                   tmp_path / "built", with_report=False)  # fmt: skip
    made = {(file.kind, file.split): file.rows for file in result.produced}
    assert made["pairs", "train"] == 4 and made["sft", "train"] == 5  # the revisions, and what was liked
    off = build(Source(logs=(log, log.parent / "ai.jsonl"), overrides=("trust.ai=off",)), tmp_path / "off",
                with_report=False)  # fmt: skip
    assert next(drop.events for drop in off.event_drops if drop.rule == "ai_off") == 4


def test_what_it_does_not_prefer_in_both_places_is_left_out(log: Path) -> None:
    with model(better, by_place=True) as asked:
        swayed = run(log, asked.url)
    assert (swayed.kept, swayed.not_better) == (0, 4)
    assert not (log.parent / "ai.jsonl").exists(), "no log of nothing, which a build would refuse"
    with pytest.raises(DataError, match="no revision is preferred to its answer in both places, so there is nothing"):
        require_revisions(swayed, log.parent / "ai.jsonl")
    with model(lambda answer: "Revision: another one, as poor") as asked:
        worse = run(log.rename(log.with_name("other.jsonl")), asked.url)
    assert worse.kept == 0


def test_nothing_is_asked_twice_and_the_bound_holds(log: Path) -> None:
    with model(better) as asked:
        first = run(log, asked.url, max_calls=7)
        assert (first.asked, first.left, len(written(log)), len(asked.bodies)) == (6, 2, 2, 6)
        assert any("2 answers are left" in line for line in revised_lines(first, log))
        second = run(log, asked.url, max_calls=6)
        assert (second.asked, second.left, len(written(log)), len(asked.bodies)) == (6, 0, 4, 12)
        assert run(log, asked.url).asked == 0 and len(asked.bodies) == 12
        assert run(log, asked.url, everything=True).answers == 5


def test_calls_that_fail_are_asked_again(log: Path) -> None:
    with model(lambda answer: Reply({}, status=400) if "number 2" in answer else better(answer)) as asked:
        broken = run(log, asked.url)
    assert (broken.kept, broken.failed) == (3, 1)
    assert any(line.startswith("! 1 answers have no reply") for line in revised_lines(broken, log))
    with model(better) as asked:
        healed = run(log, asked.url)
    assert (healed.kept, healed.asked) == (4, 3)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("Fine.\nRevision: none", None),
        ("Fine.\nRevision: None.", None),
        ("No line of that kind", None),
        ("Revision:\n", None),
        ("Bad.\nRevision: the  answer\n", None),  # what it was, in other spaces
        ("Bad.\n## Revision:\n\nBetter\n\nstill", "Better\n\nstill"),
        ("revision: short", "short"),
        ("Bad.\nRevision:\nBetter\nRevision: is a word in it", "Better\nRevision: is a word in it"),
    ],
)
def test_a_revision_is_what_stands_below_its_line(reply: str, text: str | None) -> None:
    found = read_revision(reply, "the answer")
    assert (found.text if found else None) == text


def test_a_log_without_a_disliked_answer_is_one_sentence(log: Path) -> None:
    log.write_text(json.dumps(thumb(1, "Liked.", 1)) + "\n")
    with model(better) as asked, pytest.raises(DataError, match="no answer is disliked"):
        run(log, asked.url)
