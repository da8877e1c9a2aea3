"""The pages of the browser as text. Whatever people wrote is escaped by the template; nothing on a page runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlencode

import polars as pl
from raylign.feedback.browse.shelf import USED, Shelf
from raylign.feedback.clean.personal_data import redact_text
from raylign.feedback.events import Choice, EventKind
from raylign.feedback.rules import DROP_RULES, MAKING_RULES
from raylign.feedback.turns import last_user, shown, turns_in
from raylign.pages.frame import render_page

PAGE = 40
_MOST_WORDS = 200  # choices of a filter
_BESIDE = 12  # other judgements that an event's page names
_HERE = Path(__file__).parent
_EVENT_FILTERS = (
    ("signal", "feedback"), ("fate", "became"), ("model", "model"), ("score", "score"), ("persona", "persona"),
    ("topic", "topic"), ("locale", "locale"),
)  # fmt: skip
_LINKED = {"person": "person", "conversation": "conversation_id"}  # facts of an event that lead to a list
_ROW_FILTERS = (("kind", "kind"), ("split", "split"), ("rule", "made by"))


@dataclass(frozen=True, slots=True)
class Chooser:
    """One filter: a name, what it is called, and what can be chosen."""

    name: str
    label: str
    options: tuple[str, ...]
    chosen: str


@dataclass(frozen=True, slots=True)
class Line:
    """One event or row in a list."""

    link: str
    question: str
    facts: tuple[str, ...]
    wrong: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the answers that stand side by side."""

    side: str
    text: str
    preferred: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """One event or row in full."""

    name: str
    turns: tuple[tuple[str, str], ...]  # role, content
    answers: tuple[Answer, ...]
    facts: tuple[tuple[str, str, str], ...]  # name, value, link or ""
    said: tuple[str, ...]  # reasons and comment
    wrong: bool
    hidden: tuple[tuple[str, str], ...]  # fields of the form that marks it


def events_page(shelf: Shelf, query: Mapping[str, str]) -> str:
    """A page of the events that the filters leave."""
    found = shelf.events
    for wanted in _wanted_events(query):
        found = found.filter(wanted)
    if query.get("marked"):
        found = found.filter(pl.col("event_id").is_in(sorted(shelf.wrong)))
    options = {name: _known(shelf.events[name]) for name, _ in _EVENT_FILTERS if name != "model"}
    options["model"] = _known(pl.concat([shelf.events["model_a"], shelf.events["model_b"]]))
    page = _page_of(query)
    shown = found.slice(page * PAGE, PAGE).with_columns(question=last_user(pl.col("prompt")))
    lines = [_event_line(shelf, event) for event in shown.iter_rows(named=True)]
    return _list(shelf, "events", lines, found.height, query, _choosers(_EVENT_FILTERS, options, query))


def _wanted_events(query: Mapping[str, str]) -> Iterator[pl.Expr]:
    someone = pl.coalesce("annotator_hash", "user_hash")
    for name in (*(name for name, _ in _EVENT_FILTERS), "conversation_id", "person"):
        if value := query.get(name):
            if name == "model":
                yield (pl.col("model_a") == value).fill_null(False) | (pl.col("model_b") == value).fill_null(False)
            else:
                yield (someone if name == "person" else pl.col(name)) == value
    if text := query.get("text"):
        yield pl.any_horizontal(
            pl.col(name).str.to_lowercase().str.contains(text.lower(), literal=True).fill_null(False)
            for name in ("prompt", "answer_a", "answer_b", "corrected")
        )


def rows_page(shelf: Shelf, query: Mapping[str, str]) -> str:
    """A page of the rows that the filters leave."""
    found = shelf.rows
    for name in ("kind", "split"):
        if value := query.get(name):
            found = found.filter(pl.col(name) == value)
    if value := query.get("rule"):
        found = found.filter(pl.col("rules").list.contains(value))
    if text := query.get("text"):
        low = text.lower()
        said = pl.concat_str("answer", pl.col("other").fill_null(""), separator="\n").str.to_lowercase()
        asked = pl.col("turns").list.eval(pl.element().struct.field("content")).list.join("\n").str.to_lowercase()
        found = found.filter(said.str.contains(low, literal=True) | asked.str.contains(low, literal=True))
    if query.get("marked"):
        found = found.filter(pl.col("events").list.eval(pl.element().is_in(sorted(shelf.wrong))).list.any())
    rules = shelf.rows["rules"].explode() if shelf.rows.height else pl.Series([], dtype=pl.String)
    options = {"kind": _known(shelf.rows["kind"]), "split": _known(shelf.rows["split"]), "rule": _known(rules)}
    page = _page_of(query)
    lines = [
        Line(
            link=f"row?{urlencode({'kind': row['kind'], 'id': row['id']})}",
            question=row["turns"][-1]["content"] if row["turns"] else "",
            facts=(row["kind"], row["split"], ", ".join(row["rules"]), f"weight {row['weight']:.2f}"),
            wrong=bool(shelf.wrong & set(row["events"])),
        )
        for row in found.slice(page * PAGE, PAGE).iter_rows(named=True)
    ]
    return _list(shelf, "rows", lines, found.height, query, _choosers(_ROW_FILTERS, options, query))


def event_page(shelf: Shelf, event_id: str, beside: str = "") -> str | None:
    """One event in full, `beside` another where one is given; None when there is none."""
    events = [shelf.event(name) for name in (event_id, beside) if name]
    if not events or any(event is None for event in events):
        return None
    shown = [_event(shelf, event) for event in events if event is not None]
    first = events[0]
    assert first is not None
    same = (pl.col("prompt") == first["prompt"]) & (pl.col("event_id") != event_id)
    of_it = pl.lit(False)
    if first["conversation_id"] is not None:
        of_it = (pl.col("conversation_id") == first["conversation_id"]) & (pl.col("event_id") != event_id)
    rows = shelf.rows
    if rows.height:
        rows = rows.filter(pl.col("events").list.contains(event_id))
    made = [
        (f"row?{urlencode({'kind': row['kind'], 'id': row['id']})}", f"{row['kind']}, {row['split']}")
        for row in rows.iter_rows(named=True)
    ]
    return render_page(
        _HERE / "shown.html",
        {
            "shown": shown,
            "made": made,
            "others": _others(shelf, shelf.events.filter(same), event_id),
            "conversation": _others(shelf, shelf.events.filter(of_it), event_id),
            "events": [],
            "reviews": shelf.reviews.name,
        },
        styles=(_HERE / "browse.css",),
    )


def row_page(shelf: Shelf, kind: str, row_id: str) -> str | None:
    """One row in full, with the events it was made of; None when there is none."""
    row = shelf.row(kind, row_id)
    if row is None:
        return None
    return render_page(
        _HERE / "shown.html",
        {
            "shown": [_row(shelf, row)],
            "made": [],
            "others": [],
            "conversation": [],
            "events": [(f"event?{urlencode({'id': event})}", event) for event in _list_of(row["events"])],
            "reviews": shelf.reviews.name,
        },
        styles=(_HERE / "browse.css",),
    )


def _event(shelf: Shelf, event: Mapping[str, object]) -> Shown:
    choice, thumb, rating = event["choice"], event["thumb"], event["rating"]
    both = {Choice.A.value: "a", Choice.B.value: "b"}
    if event["kind"] == EventKind.SIDE_BY_SIDE.value:
        sides = [("a", event["answer_a"], event["model_a"]), ("b", event["answer_b"], event["model_b"])]
        answers = [
            Answer(
                _side(side, model, event["shown_left"] == side), shown(f"{text or ''}"), both.get(f"{choice}") == side
            )
            for side, text, model in sides
        ]
    else:
        answers = [Answer(_side("answer", event["model_a"]), shown(f"{event['answer_a']}"), thumb == 1)]
        if event["corrected"]:
            answers.append(Answer("what the person wrote instead", shown(f"{event['corrected']}"), True))
    said = [*_list_of(event["reasons"]), *([event["comment"]] if event["comment"] else [])]
    verdict = choice or rating or {"1": "up", "-1": "down"}.get(f"{thumb}")
    person, fate = event["annotator_hash"] or event["user_hash"], f"{event['fate']}"
    facts = {
        "feedback": f"{event['signal']}".replace("_", " "), "verdict": verdict, "score": event["score"],
        "became": "a row" if fate == USED else f"{fate}: {DROP_RULES[fate][1] if fate in DROP_RULES else ''}",
        "person": person, "conversation": event["conversation_id"], "time": event["time"], "persona": event["persona"],
        "topic": event["topic"], "locale": event["locale"], "surface": event["surface"],
        "seconds": event["seconds_taken"], "line of the log": event["source_row"],
    }  # fmt: skip
    return Shown(
        name=f"event {event['event_id']}",
        turns=tuple(turns_in(f"{event['prompt']}")),
        answers=tuple(answers),
        facts=tuple(
            (name, _shown(value), f"./?{urlencode({_LINKED[name]: _shown(value)})}" if name in _LINKED else "")
            for name, value in facts.items()
            if value is not None
        ),
        said=tuple(redact_text(f"{text}") if shelf.redact else f"{text}" for text in said),
        wrong=event["event_id"] in shelf.wrong,
        hidden=(("event", f"{event['event_id']}"),),
    )


def _row(shelf: Shelf, row: Mapping[str, object]) -> Shown:
    names = {"sft": "answer to imitate", "pairs": "chosen", "kto": "judged good" if row["label"] else "judged bad",
             "teacher": "what the teacher is asked"}  # fmt: skip
    answers = [Answer(names[f"{row['kind']}"], f"{row['answer']}", row["kind"] != "kto" or bool(row["label"]))]
    if row["other"] is not None:
        answers.append(Answer("rejected", f"{row['other']}", False))
    turns = row["turns"] if isinstance(row["turns"], list) else []
    rules = [f"{rule}: {MAKING_RULES.get(f'{rule}', '')}" for rule in _list_of(row["rules"])]
    facts = (("kind", f"{row['kind']}", ""), ("split", f"{row['split']}", ""), ("weight", _shown(row["weight"]), ""),
             ("made by", " ".join(rules), ""))  # fmt: skip
    return Shown(
        name=f"row {row['id']}",
        turns=tuple((turn["role"], turn["content"]) for turn in turns),
        answers=tuple(answers),
        facts=facts,
        said=(),
        wrong=bool(shelf.wrong & {f"{event}" for event in _list_of(row["events"])}),
        hidden=(("kind", f"{row['kind']}"), ("row", f"{row['id']}")),
    )


def _event_line(shelf: Shelf, event: Mapping[str, object]) -> Line:
    time = event["time"]
    facts = [f"{event['signal']}".replace("_", " "), f"{event['fate']}".replace("_", " "), event["model_a"]]
    if isinstance(time, datetime):
        facts.append(f"{time:%Y-%m-%d %H:%M}")
    return Line(
        link=f"event?{urlencode({'id': event['event_id']})}",
        question=f"{event['question']}",
        facts=tuple(f"{fact}" for fact in facts if fact),
        wrong=event["event_id"] in shelf.wrong,
    )


def _others(shelf: Shelf, events: pl.DataFrame, beside: str) -> list[tuple[str, str, str]]:
    """(its page, the page with both side by side, what it is) of other events."""
    shown = events.head(_BESIDE).with_columns(question=last_user(pl.col("prompt")))
    found = []
    for event in shown.iter_rows(named=True):
        line = _event_line(shelf, event)
        both = f"event?{urlencode({'id': beside, 'beside': event['event_id']})}"
        found.append((line.link, both, f"{event['question'][:80]} ({', '.join(line.facts)})"))
    return found


def _list(
    shelf: Shelf, what: str, lines: Sequence[Line], count: int, query: Mapping[str, str], choosers: Sequence[Chooser]
) -> str:
    page = _page_of(query)
    kept = {name: value for name, value in query.items() if name != "page" and value}
    return render_page(
        _HERE / "list.html",
        {
            "folder": shelf.folder.name,
            "what": what,
            "lines": lines,
            "count": count,
            "first": page * PAGE + 1,
            "choosers": choosers,
            "text": query.get("text", ""),
            "marked": bool(query.get("marked")),
            "kept": [(name, kept[name]) for name in ("person", "conversation_id") if name in kept],
            "before": f"?{urlencode({**kept, 'page': page - 1})}" if page else "",
            "after": f"?{urlencode({**kept, 'page': page + 1})}" if (page + 1) * PAGE < count else "",
            "changed": shelf.changed,
            "num_wrong": len(shelf.wrong),
            "reviews": shelf.reviews.name,
        },
        styles=(_HERE / "browse.css",),
    )


def _choosers(
    filters: Sequence[tuple[str, str]], options: Mapping[str, tuple[str, ...]], query: Mapping[str, str]
) -> list[Chooser]:
    """Filters with something to choose between."""
    return [
        Chooser(name, label, options[name], query.get(name, "")) for name, label in filters if len(options[name]) > 1
    ]


def _known(values: pl.Series) -> tuple[str, ...]:
    return tuple(values.drop_nulls().unique().sort().head(_MOST_WORDS)) if values.len() else ()


def _page_of(query: Mapping[str, str]) -> int:
    page = query.get("page", "0")
    return int(page) if page.isdecimal() and len(page) < 9 else 0


def _side(name: str, model: object, left: bool = False) -> str:
    parts = [name, *([f"{model}"] if model else []), *(["stood left"] if left else [])]
    return " · ".join(parts)


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    return f"{value:.2f}" if isinstance(value, float) else f"{value}"


def _list_of(value: object) -> list[object]:
    return value if isinstance(value, list) else []
