"""What an unknown file looks like, and a mapping that would read it, ready to be edited."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from raylign.feedback.importers.containers import Columns
from raylign.feedback.importers.outcome import excerpt
from raylign.feedback.importers.turns import unpacked
from raylign.feedback.importers.values import choice_of, thumb_of

_MAX_COLUMNS = 24
_EXAMPLE_CHARS = 60
_EXAMPLES = 3
_MOST_WORDS = 12  # of a column whose words need a meaning each

_GUESSES: tuple[tuple[str, str], ...] = (
    ("event_id", r"(event|feedback|vote|row|record|request)?_?(id|uuid)$"),
    ("prompt", r"prompt|question|messages|query|instruction|input$|conversation$|user_message"),
    ("response_a", r"(response|answer|completion|output|reply|text)_?(a|1|0|left)$"),
    ("response_b", r"(response|answer|completion|output|reply|text)_?(b|2|right)$|(answers|responses)\.1"),
    ("response_a", r"response|answer|completion|output|reply|bot_message|generation"),
    ("choice", r"winner|choice|choose|chosen_side|preferred|preference|pick|selected|vote$"),
    ("thumb", r"thumb|like|feedback$|vote|is_?good|positive|sentiment"),
    ("rating", r"rating|stars|score|grade"),
    ("corrected", r"correct|edited|rewrite|expected|improved"),
    ("user_id", r"user_?(id|name|email)?$|customer|email"),
    ("annotator_id", r"annotator|labell?er|rater|judge|reviewer"),
    ("time", r"time|date|created|_at$|^ts$"),
    ("conversation_id", r"conversation_?id|session|thread|chat_?id"),
    ("model_a", r"model_?(a|1|left)?$|engine"),
    ("model_b", r"model_?(b|2|right)$"),
    ("comment", r"comment|note|explanation|free_?text"),
    ("locale", r"locale|lang"),
)


def looks_like(path: Path, rows: Sequence[Columns], reasons: Sequence[str], known: Sequence[str]) -> list[str]:
    """The refusal, as problems to show: what it is not, what it holds, a mapping to start from."""
    refusal = f"{path}: no feedback log in a known format ({', '.join(known)})."
    if not rows:
        first = "; ".join(reasons[:_EXAMPLES]) or "it holds no row"
        return [f"{refusal} None of its first rows could be read: {first}."]
    columns = _columns(rows)
    shown = "\n".join(f"  {name}: {', '.join(examples[:_EXAMPLES])}" for name, examples in columns.items())
    return [
        f"{refusal} It looks like this:\n{shown}",
        f"To read it, save these lines as mapping.yaml, put right what is guessed wrong, and give the file as "
        f"mapping:\n\n{mapping_for(columns)}",
    ]


def mapping_for(columns: Mapping[str, Sequence[str]]) -> str:
    """YAML of a mapping, guessed from column names and example values. Fields not found are there as comments."""
    places: dict[str, str] = {}
    free = list(columns)
    for field, pattern in _GUESSES:
        if field in ("thumb", "rating") and "choice" in places:
            continue  # one judgement is enough for a start
        name = next((n for n in free if re.search(pattern, n.lower()) and _fits(field, columns[n])), None)
        if field not in places and name is not None:
            places[field] = name
            free.remove(name)
    lines = ["source: my-app", "fields:"]
    for field in dict.fromkeys(field for field, _ in _GUESSES):
        if field in places:
            lines.append(f"  {field}: {_spec(field, places[field], columns[places[field]])}")
        elif field in ("prompt", "response_a"):
            lines.append(f"  {field}: {free[0] if free else 'WHICH_COLUMN'}  # a guess: which column is it?")
    if not set(places) & {"choice", "thumb", "rating", "corrected"}:
        lines.append("  thumb: {column: WHICH_COLUMN, values: {YOUR_WORD: 1, YOUR_OTHER_WORD: -1}}")
    return "\n".join(lines)


def _fits(field: str, examples: Sequence[str]) -> bool:
    if field == "choice":
        return len(examples) < _MOST_WORDS and not any(_is_number(example) for example in examples)
    if field == "thumb":
        return all(thumb_of(example) is not None or not _is_number(example) for example in examples)
    if field == "rating":
        return all(_is_number(example) for example in examples)
    return True


def _is_number(example: str) -> bool:
    return example.replace(".", "", 1).removeprefix("-").isdigit()


def _spec(field: str, name: str, examples: Sequence[str]) -> str:
    if field == "choice":
        sides = {example: choice_of(example) for example in examples}
        words = ", ".join(f"{_quoted(word)}: {side.value if side else 'a'}" for word, side in sides.items())
        return f"{{column: {_quoted(name)}, values: {{{words}}}}}  # each word: a, b, both_good, both_bad or skipped"
    if field == "thumb":
        words = ", ".join(f"{_quoted(example)}: {thumb_of(example) or 1}" for example in examples)
        return f"{{column: {_quoted(name)}, values: {{{words}}}}}  # each word: 1 (up) or -1 (down)"
    if field == "rating":
        return f"{{column: {_quoted(name)}, scale: [1, 5]}}  # lowest and highest"
    return _quoted(name)


def _quoted(word: str) -> str:
    """As YAML takes it: `yes`, `1` and words with signs in them want quotes."""
    safe = re.fullmatch(r"[A-Za-z_][\w.]*", word) and word.lower() not in (
        "yes",
        "no",
        "true",
        "false",
        "on",
        "off",
        "null",
    )
    return word if safe else "'" + word.replace("'", "''") + "'"


def _columns(rows: Sequence[Columns]) -> dict[str, list[str]]:
    """Column paths with up to three different example values, people's ids struck out."""
    columns: dict[str, list[str]] = {}
    for row in rows:
        for name, value in _leaves(row, ""):
            if name not in columns and len(columns) == _MAX_COLUMNS:
                continue
            examples = columns.setdefault(name, [])
            example = _example(name, value)
            if len(examples) < _MOST_WORDS and example and example not in examples:
                examples.append(example)
    return columns


def _leaves(row: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in row.items():
        name, value = f"{prefix}{key}", unpacked(value)
        if isinstance(value, Mapping) and value and prefix.count(".") < 2:
            yield from _leaves(value, f"{name}.")
        elif (
            isinstance(value, list)
            and len(value) == 2
            and all(isinstance(v, str | Mapping) for v in value)
            and not (isinstance(value[0], Mapping) and "role" in value[0])
        ):
            yield from _leaves({f"{i}": v for i, v in enumerate(value)}, f"{name}.")
        else:
            yield name, value


def _example(name: str, value: object) -> str:
    if value is None or value == "":
        return ""
    if not excerpt(f'"{name}": "x"').endswith('"x"'):
        return "..."
    plain = value if isinstance(value, str) else excerpt(json.dumps(value, ensure_ascii=False, default=str))
    text = " ".join(plain.split())
    return text if len(text) <= _EXAMPLE_CHARS else text[: _EXAMPLE_CHARS - 3] + "..."
