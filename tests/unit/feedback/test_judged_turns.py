"""A model beside the rules: what it calls corrections adds rows, where it was measured to be right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from raylign.app.commands.feedback_corrections import Found, find_corrections_by_model, found_lines
from raylign.app.commands.judge_open import Who
from raylign.conf.errors import DataError, UserError
from raylign.feedback.build import build
from raylign.feedback.build_result import BuildResult
from raylign.feedback.judged_turns import LABELLED, Tally, read_judged, read_labelled, read_reply
from raylign.feedback.source import Source

from tests.unit.reward.json_server import Asked, Reply, serving

IMPLIED = "The invoice says 340."
ADDED = "Put the tax beside it."
ANNA = "anna@example.org disagrees."
RULED = "No, I meant in euros."


@contextmanager
def judging(corrects: set[str]) -> Iterator[Asked]:
    """A judge that knows which turns correct."""

    def answer(body: object, number: int) -> Reply:
        said = body["messages"][0]["content"]  # type: ignore[index]
        turn = said.split("<message>\n")[1].split("\n</message>")[0]
        return Reply({"choices": [{"message": {"content": "Yes." if turn in corrects else "no"}}]})

    with serving(answer) as asked:
        yield asked


def write_log(folder: Path, *turns: str) -> Path:
    """Question, first answer, a turn, and a second answer that was liked."""
    rows = [
        {"event_id": f"e{n}", "kind": "thumb", "thumb": 1, "user_id": f"u{n}", "response_a": f"It is {n}, of course.",
         "prompt": [{"role": "user", "content": f"What is the total of order {n}?"},
                    {"role": "assistant", "content": f"The total of it is {n + 7}."},
                    {"role": "user", "content": turn}]}
        for n, turn in enumerate(turns)
    ]  # fmt: skip
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "log.jsonl"


def truth() -> set[str]:
    return {one.turn.text for one in read_labelled(LABELLED) if one.corrects}


def ask(log: Path | None, url: str, folder: Path, **more: object) -> Found:
    source = Source(logs=(log,) if log else ())
    return find_corrections_by_model(source, folder / "turns.jsonl", Who(model="wise", url=url, deadline_s=10),
                                     lambda said: None, **more)  # type: ignore[arg-type]  # fmt: skip


def made(folder: Path, log: Path, *overrides: str) -> tuple[BuildResult, dict[str, list[str]]]:
    """The build with the judged turns, and the rules of SFT rows by their question."""
    out = folder / f"out{len(list(folder.iterdir()))}"
    nothing_held_out = ("split.eval=0", "split.test=0", "clean.near_duplicates=false")
    source = Source(logs=(log, folder / "turns.jsonl"), overrides=(*nothing_held_out, *overrides))
    result = build(source, out, with_report=False)
    rows = [json.loads(line) for line in (out / "sft/train.jsonl").read_text().splitlines()]
    return result, {row["messages"][0]["content"]: row["rules"] for row in rows if len(row["messages"]) == 2}


def test_what_the_model_calls_a_correction_adds_a_row(tmp_path: Path) -> None:
    log = write_log(tmp_path, IMPLIED, ADDED, ANNA, RULED)
    with judging(truth() | {IMPLIED, "<EMAIL_1> disagrees."}) as asked:
        found = ask(log, asked.url, tmp_path)

    assert (found.turns, found.by_rules, found.by_model, found.by_both) == (4, 1, 2, 0)
    assert found.model == Tally(right=38, wrong=0, missed=0) and found.asked == found.labelled + 4 == 80
    assert "anna@example.org" not in json.dumps(asked.bodies)
    assert not any(text in (tmp_path / "turns.jsonl").read_text() for text in (IMPLIED, "anna"))
    result, rules = made(tmp_path, log)
    assert sorted(map(tuple, rules.values())) == [("in_conversation",)] + [("in_conversation_judged",)] * 2
    assert f"What is the total of order 0?\n\n{IMPLIED}" in rules and result.rows_in == 4
    assert "turns.jsonl" in {file.name for file in result.inputs}


def test_a_judge_that_was_measured_to_be_wrong_is_refused(tmp_path: Path) -> None:
    log = write_log(tmp_path, IMPLIED, ADDED)
    everything = {one.turn.text for one in read_labelled(LABELLED)} | {IMPLIED, ADDED}
    with judging(everything) as asked:
        found = ask(log, asked.url, tmp_path)
    assert found.model == Tally(right=38, wrong=38, missed=0)
    assert any("a build refuses this judge" in line for line in found_lines(found, log))
    with pytest.raises(DataError, match="38 of the 76 labelled turns that wise calls corrections are, and"):
        made(tmp_path, log)
    _, rules = made(tmp_path, log, "corrections.min_precision=0.5")
    assert len(rules) == 2


def test_a_judge_that_calls_nothing_a_correction_is_not_taken_for_a_precise_one(tmp_path: Path) -> None:
    log = write_log(tmp_path, IMPLIED)
    with judging(set()) as asked:
        ask(log, asked.url, tmp_path)
    with pytest.raises(DataError, match="0 of the 0 labelled turns"):
        made(tmp_path, log)


def test_nothing_is_asked_twice_and_cost_is_bounded(tmp_path: Path) -> None:
    log = write_log(tmp_path, IMPLIED, ADDED, RULED)
    with judging(truth()) as asked:
        first = ask(log, asked.url, tmp_path, max_calls=2)
        assert (first.asked, first.left, len(read_judged(tmp_path / "turns.jsonl").turns)) == (78, 1, 2)
        second = ask(log, asked.url, tmp_path, max_calls=2)
        assert (second.asked, second.left, len(asked.bodies)) == (1, 0, 79)


def test_a_sample_of_ones_own_and_no_log(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    about = {"question": "q", "answer": "two\u2028lines"}
    lines: list[dict[str, object]] = [{**about, "turn": turn, "corrects": turn == IMPLIED} for turn in (IMPLIED, ADDED)]
    own.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    with judging({ADDED}) as asked:
        found = ask(None, asked.url, tmp_path, labelled=own)
    assert (found.labelled, found.model, found.turns) == (2, Tally(right=0, wrong=1, missed=1), 0)
    own.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(DataError, match="turns that correct and turns that do not"):
        ask(None, "http://127.0.0.1:9/v1", tmp_path, labelled=own)
    own.write_text('{"question": "q"}\n')
    with pytest.raises(DataError, match=r"own.jsonl, line 1: not a labelled turn"):
        ask(None, "http://127.0.0.1:9/v1", tmp_path, labelled=own)


def test_an_endpoint_that_fails_leaves_no_verdicts(tmp_path: Path) -> None:
    with (
        serving(lambda body, number: Reply({"error": "no"}, 400)) as asked,
        pytest.raises(UserError, match="76 labelled turns have no"),
    ):
        ask(None, asked.url, tmp_path)
    assert not (tmp_path / "turns.jsonl").exists()


@pytest.mark.parametrize("line", ['{"turn": "k"}', '{"turn": "k", "event": "e", "corrects": "yes"}', "{broken"])
def test_a_line_that_is_no_judged_turn_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "turns.jsonl"
    head = {"kind": "judged_turns", "judge": "j", "version": "v", "labelled": {"right": 1, "wrong": 0, "missed": 0}}
    file.write_text(f"{json.dumps(head)}\n{line}\n")
    with pytest.raises(DataError, match="line 2: not a judged turn"):
        read_judged(file)
    with pytest.raises(DataError, match="holds judged turns alone"):
        build(Source(logs=(file,)), tmp_path / "out", with_report=False)


@pytest.mark.parametrize(
    ("reply", "said"),
    [("yes", True), ("No.", False), ("**Yes**", True), ("It does not.\nno", False), ("Correction: yes", True),
     ("yes and no", None), ("maybe", None), ("", None), ("Nobody", None)],
)  # fmt: skip
def test_a_reply_is_one_word(reply: str, said: bool | None) -> None:
    assert read_reply(reply) is said
