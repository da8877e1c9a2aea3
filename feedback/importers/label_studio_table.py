"""Label Studio's JSON_MIN and CSV exports: an annotation a row, the task's data and the controls' values side by side.

A pairwise control's value is `left` or `right`, a choices control's the words of the label. Which column is the control
is not said: the one beside the data whose value names a side.
"""

from __future__ import annotations

from collections.abc import Mapping

from raylign.feedback.events import Choice, Event, EventKind, Side
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, each
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.pairs import question_in, text_in, two_answers_in
from raylign.feedback.importers.turns import unpacked
from raylign.feedback.importers.values import choice_of, in_order, number_of, time_of

_ABOUT = {"id", "annotation_id", "annotator", "created_at", "updated_at", "lead_time", "model_a", "model_b"}


def recognises(columns: Columns) -> bool:
    """An annotation by somebody, with how long it took."""
    return {"annotation_id", "annotator", "lead_time"} <= set(columns)


def _read(row: Row, columns: Columns, context: Context) -> list[Event]:
    names = two_answers_in(columns)
    if names is None:
        raise RowProblem("no two answers among the columns (answer1 and answer2, text1 and text2, left and right, ...)")
    created = time_of(columns.get("created_at"), "created_at")
    updated = time_of(columns.get("updated_at"), "updated_at")
    in_order(created, updated, "the annotation")
    taken = columns.get("lead_time")
    models = [columns.get(name) for name in ("model_a", "model_b")]
    return [
        Event(
            event_id=f"label_studio:{columns.get('id')}:{columns.get('annotation_id')}",
            kind=EventKind.SIDE_BY_SIDE,
            source=context.source,
            source_row=row.line,
            prompt=question_in(columns),
            response_a=text_in(columns, names[0]),
            response_b=text_in(columns, names[1]),
            annotator_hash=context.hashed(columns.get("annotator")),
            time=created,
            updated=updated,
            seconds_taken=None if taken in (None, "") else number_of(taken, "lead_time"),
            model_a=models[0] if isinstance(models[0], str) else None,
            model_b=models[1] if isinstance(models[1], str) else None,
            shown_left=Side.A,  # the tag shows its first object on the left, always
            choice=context.scores.side(
                *_choice({name: columns[name] for name in columns if name not in (*_ABOUT, *names)})
            ),
        )
    ]


def _choice(others: Columns) -> tuple[str, Choice]:
    """The control's name and what it says. Raises RowProblem when none or several columns could be it."""
    found = {name: choice for name, value in others.items() if (choice := choice_of(_picked(value))) is not None}
    if len(found) != 1:
        raise RowProblem(
            f"{len(found)} columns could say which answer is better; expected one, with left or right in it"
        )
    return next(iter(found.items()))


def _picked(value: object) -> object:
    value = unpacked(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        chosen = value.get("selected") or value.get("choices")
        return chosen[0] if isinstance(chosen, list) and len(chosen) == 1 else chosen
    return value


FORMAT = Format(
    name="label_studio_min",
    title="Label Studio JSON_MIN or CSV export",
    recognises=recognises,
    parse=each(_read),
)
