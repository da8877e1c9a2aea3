"""The page of an event: nothing of a log can script it or leave its folder, and the sentence says what happened."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from raylign.data.types import Message
from raylign.evals.trace_event import (
    Alike,
    AnswerTrace,
    EventTrace,
    RowOrigin,
    RowTrace,
    StepTrace,
    TokenMove,
    headline,
)
from raylign.evals.trace_page import page, shaded, write_trace

HOSTILE = "</div><script>alert(1)</script>"
STEP = StepTrace(2, 1e-4, -1.0, 0.5, 1.4, 0.7, 3.0, (("layer 0", 1.0), (HOSTILE, 2.0)), 0.1)
ANSWER = AnswerTrace(HOSTILE, -5.0, -4.0, (TokenMove(HOSTILE, 0.1, -2.0), TokenMove("b", 0.0, 1.0)))
ROW = RowTrace(
    RowOrigin(3, (HOSTILE,), (HOSTILE,), 1.0, None, HOSTILE, HOSTILE), (Message("user", HOSTILE),),
    (ANSWER, ANSWER), None, -1.0, 2.0, (STEP,), (), (),
)  # fmt: skip
TRACE = EventTrace(HOSTILE, "run", "dpo", "probability gap", "nats", (ROW,), (), 0, 1e-6, 1, 10)


def test_what_a_log_says_cannot_script_the_page():
    text = page(TRACE)

    assert "<script" not in text and "alert(1)" in text


@pytest.mark.parametrize("event", ["../../etc/passwd", "..", "a/b", "a" * 300, "\u202eevil", ""])
def test_no_event_leaves_the_folder(event: str, tmp_path: Path):
    path = write_trace(tmp_path, replace(TRACE, event=event))

    assert path.parent == tmp_path and len(path.name) < 100
    assert write_trace(tmp_path, replace(TRACE, event=event + "!")) != path


def test_the_sentence_knows_what_the_person_wanted():
    assert "as the person wanted" in headline(TRACE)
    down = replace(ROW, answers=(ANSWER,), desirable=False)
    assert "against what the person wanted" in headline(replace(TRACE, rows=(down,)))
    assert "ended before it came" in headline(replace(TRACE, rows=(replace(ROW, steps=()),)))
    assert "trained nothing in run: refusals" in headline(replace(TRACE, rows=(), dropped=("refusals",)))


def test_neighbours_of_a_judged_answer_say_what_was_said_of_them():
    near = Alike(RowOrigin(4, ("thumb-4",)), 0.5, "Which?", "That.", desirable=False)
    pairs = page(replace(TRACE, rows=(replace(ROW, same=(replace(near, desirable=None),)),)))
    judged = page(replace(TRACE, rows=(replace(ROW, answers=(ANSWER,), desirable=True, same=(near,)),)))

    assert ">Preferred answer<" in pairs and ">disliked<" not in pairs
    assert ">Preferred answer<" not in judged and ">disliked<" in judged


def test_a_loss_of_more_than_the_value_says_why_nothing_is_predicted():
    without = page(replace(TRACE, rows=(replace(ROW, steps=(replace(STEP, predicted=None),)),)))

    assert "no first-order prediction" in without and "no first-order prediction" not in page(TRACE)


def test_a_row_that_no_step_trained_on_shows_start_and_end_alone():
    text = page(replace(TRACE, loss_gap=0.05, rows=(replace(ROW, steps=()),)))

    assert "What the run did without it" in text and ">predicted<" not in text and "Training was repeated" not in text
    assert ">predicted<" in page(TRACE) and "Training was repeated" in page(replace(TRACE, loss_gap=0.05))


def test_shades_go_by_the_largest_move():
    assert [token.shade for token in shaded(ANSWER.tokens, by_run=True)] == ["down4", "up2"]
    assert [token.shade for token in shaded(ANSWER.tokens, by_run=False)] == ["up4", ""]


ROOT = Path(__file__).resolve().parents[3]
TEMPLATES = [*(ROOT / "evals").glob("*.html"), *(ROOT / "feedback/report").glob("*.html"),
             *(ROOT / "records/report").glob("*.html")]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_cell_says_what_it_is_where_a_narrow_screen_stacks_them(template: Path):
    tables = re.findall(r'<table class="[^"]*\bstack\b[^"]*">.*?</table>', template.read_text(), flags=re.DOTALL)
    for cell in re.findall(r"<td.*?</td>", "".join(tables), flags=re.DOTALL):
        assert "data-label=" in cell or 'class="prose"' in cell or cell == "<td></td>", cell
