"""What an unknown file looks like, and a mapping that would read it, ready to be edited."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from raylign.feedback.events import Choice
from raylign.feedback.importers.containers import Columns
from raylign.feedback.importers.outcome import RowProblem, excerpt
from raylign.feedback.importers.turns import unpacked
from raylign.feedback.importers.values import choice_of, thumb_of, time_of

_MAX_COLUMNS = 24
_EXAMPLE_CHARS = 60
_EXAMPLES = 3
_MOST_WORDS = 12  # of a column whose words need a meaning each

_ANSWER = r"response|answer|completion|output|reply|generation|(bot|assistant|ai|model)_(message|text)"
_GUESSES: tuple[tuple[str, str], ...] = (
    (
        "event_id",
        r"^((.*_)?(event|feedback|vote|row|record|request|assignment|annotation|submission|judgement)_)?(id|uuid)$",
    ),
    ("time", r"time|date|created|_at$|^ts$"),
    ("seconds_taken", r"seconds|duration|lead_time|work_time"),
    ("annotator_id", r"annotator|labell?er|rater|judge|reviewer|worker|coder"),
    ("user_id", r"user_?(id|name|email)?$|customer|e_?mail|participant|respondent"),
    ("model_a", r"model_?(name_?)?(a|1|left)?$|engine"),
    ("model_b", r"model_?(name_?)?(b|2|right)$"),
    ("conversation_id", r"conversation_?(id|hash)|session|thread|chat_?id"),
    (
        "choice",
        r"winner|choice|choose|chosen_side|preferred|preference|pick|selected|vote$|better|best|comparison|which|class_name|loser|worse|worst|^labels?$",
    ),
    ("strength", r"confiden|how_sure|certain|strength"),
    ("prompt", r"prompt|question|messages|query|instruction|input$|conversation$|user_message|history"),
    ("response_a", r"(response|answer|completion|output|reply|text|option|ref|summary)_?(a|1|0|left)$|chosen$"),
    (
        "response_b",
        r"(response|answer|completion|output|reply|text|option|ref|summary)_?(b|2|right)$|(answers|responses)_1$|rejected$",
    ),
    ("response_a", _ANSWER),
    ("thumb", r"thumb|like|feedback$|vote|is_?good|positive|sentiment|helpful|label$"),
    ("rating", r"rating|stars|score|grade|quality|helpful|useful|satisf|percent|nps|csat"),
    ("corrected", r"correct|edited|rewrite|expected|improved"),
    ("comment", r"comment|note|explanation|free_?text|remark|why"),
    ("locale", r"locale|lang"),
)
_PERSON = re.compile(
    r"user|worker|annotator|rater|email|customer|judge|reviewer|author|person|participant|respondent|name"
)
_SPOKEN = re.compile(r"message|text|question|input|prompt|query|answer|said")  # a user's message is no user
_WORSE = re.compile(r"loser|worse|worst")
_NO_TEXT = re.compile(
    r"(^|_)(id|ids|uuid|hash|name|model|provider|domain|type|split|lang|language|url|status|time|date|num_\w+)$"
)
_TO_SAY = "SAY_WHICH"
"""Stands for a meaning that is not guessed. A row whose word it is quarantined until somebody has said it."""


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
        f"mapping:\n\n{mapping_for(columns, _unique(rows))}",
    ]


def _unique(rows: Sequence[Columns]) -> frozenset[str]:
    """Columns with another value in every row: what may be an id."""
    values: dict[str, list[str]] = {}
    for row in rows:
        for name, value in _leaves(row, ""):
            values.setdefault(name, []).append(f"{value}")
    return frozenset(name for name, seen in values.items() if len(set(seen)) == len(rows))


def mapping_for(columns: Mapping[str, Sequence[str]], ids: frozenset[str]) -> str:
    """YAML of a mapping, guessed from column names and example values. Fields not found are there as comments.

    `ids` are the columns that may identify a row.
    """
    places: dict[str, str] = {}
    free = list(columns)
    for field, pattern in _GUESSES:
        if field in ("thumb", "rating") and "choice" in places:
            continue  # one judgement is enough for a start
        able = [name for name in free if field != "event_id" or name in ids]
        name = next((n for n in able if re.search(pattern, _plain(n)) and _fits(field, n, columns[n])), None)
        if field not in places and name is not None:
            places[field] = name
            free.remove(name)
    _complete(places, free, columns)
    lines = ["source: my-app", "fields:"]
    for field in dict.fromkeys(field for field, _ in _GUESSES):
        if field in places:
            lines.append(_line(field, places, columns[places[field]]))
        elif field in ("prompt", "response_a"):
            texts = [name for name in free if _is_text(name, columns[name])]
            lines.append(f"  {field}: {_quoted(texts[0]) if texts else 'WHICH_COLUMN'}  # a guess: which column is it?")
            free = [name for name in free if name not in texts[:1]]
    if not set(places) & {"choice", "thumb", "rating", "corrected"}:
        lines.append("  thumb: {column: WHICH_COLUMN, values: {YOUR_WORD: 1, YOUR_OTHER_WORD: -1}}")
    return "\n".join(lines)


def _complete(places: dict[str, str], free: list[str], columns: Mapping[str, Sequence[str]]) -> None:
    """Beside a choice a second column of answers; and a number beside two answers is a choice, not a rating of one."""
    if "choice" in places and "response_b" not in places and "response_a" in places:
        second = next((n for n in free if re.search(_ANSWER, _plain(n)) and _is_text(n, columns[n])), None)
        if second is not None:
            places["response_b"] = second
            free.remove(second)
    if "rating" in places and "response_b" in places and "choice" not in places:
        places["choice"] = places.pop("rating")


def _plain(name: str) -> str:
    """A column's name in lower case with underscores: AssignmentId, Response A and Answer.choice alike."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def _fits(field: str, name: str, examples: Sequence[str]) -> bool:
    numbers = bool(examples) and all(_is_number(example) for example in examples)
    if field == "event_id":
        return not _PERSON.search(_plain(name))
    if field == "choice":
        few = 0 < len(examples) < _MOST_WORDS and all(len(example.split()) < 5 for example in examples)
        return few and (not numbers or len(examples) < 3) and not _PERSON.search(_plain(name).replace("class_name", ""))
    if field == "thumb":
        return all(thumb_of(example) is not None or not _is_number(example) for example in examples)
    if field == "strength":
        return numbers and all(float(example) > 0 for example in examples)
    if field in ("rating", "seconds_taken"):
        return numbers
    if field in ("prompt", "response_a", "response_b", "corrected"):
        return not numbers and not _NO_TEXT.search(_plain(name)) and not _is_person(name)
    if field in ("model_a", "model_b", "comment"):
        return not numbers
    return True


def _is_person(name: str) -> bool:
    return bool(_PERSON.search(_plain(name))) and not _SPOKEN.search(_plain(name))


def _is_text(name: str, examples: Sequence[str]) -> bool:
    return _fits("prompt", name, examples) and any(len(example.split()) > 2 for example in examples)


def _is_number(example: str) -> bool:
    return example.replace(".", "", 1).removeprefix("-").isdigit()


def _line(field: str, places: Mapping[str, str], examples: Sequence[str]) -> str:
    """One field of the mapping, or the comment that says why it is left out."""
    name = places[field]
    if field == "time":
        unread = next((example for example in examples if not _is_time(example)), None)
        if unread is not None:
            return f"  # time: {_quoted(name)} is left out, {unread!r} is not read; write it as 2026-03-11T14:01:00Z"
    if field == "choice":
        return f"  choice: {_choice(name, examples, places)}"
    return f"  {field}: {_spec(field, name, examples)}"


def _choice(name: str, examples: Sequence[str], places: Mapping[str, str]) -> str:
    """A word that is a column's name, or the end of it, means the answer in that column."""
    ends = {Choice.A: _plain(places.get("response_a", "")), Choice.B: _plain(places.get("response_b", ""))}
    known: dict[str, Choice | None] = {}
    for word in examples:
        by_name = [side for side, column in ends.items() if f"_{column}".endswith(f"_{_plain(word)}") and _plain(word)]
        named = by_name[0] if len(by_name) == 1 and not _is_number(word) else None
        known[word] = None if _WORSE.search(_plain(name)) else named or _side(word, examples)
    words = ", ".join(f"{_quoted(word)}: {side.value if side else _TO_SAY}" for word, side in known.items())
    return f"{{column: {_quoted(name)}, values: {{{words}}}}}  # each word: a, b, both_good, both_bad or skipped"


def _is_time(example: str) -> bool:
    try:
        return time_of(example) is not None
    except RowProblem:
        return False


def _spec(field: str, name: str, examples: Sequence[str]) -> str:
    if field == "thumb":
        words = ", ".join(f"{_quoted(example)}: {thumb_of(example) or _TO_SAY}" for example in examples)
        return f"{{column: {_quoted(name)}, values: {{{words}}}}}  # each word: 1 (up) or -1 (down)"
    if field in ("rating", "strength"):
        seen = [float(example) for example in examples]
        low, high = _scale(seen, name)
        start = 0 if field == "strength" else low  # a strength of nought would be none
        return f"{{column: {_quoted(name)}, scale: [{start:g}, {high:g}]}}  # seen: {min(seen):g} to {max(seen):g}"
    return _quoted(name)


def _side(word: str, all_words: Sequence[str]) -> Choice | None:
    """The side a word names, also at the end of it (Response A, option 2). Numbers count from one only if none is 0."""
    if _is_number(word):
        return {"1": Choice.A, "2": Choice.B}.get(word) if "2" in all_words and "0" not in all_words else None
    tail = re.sub(
        r"(?i)^(?:the )?(?:response|answer|option|model|assistant|completion|output|reply|text|choice)[ _\-]*", "", word
    )
    return choice_of(word) or choice_of(tail.strip())


def _scale(seen: Sequence[float], name: str) -> tuple[float, float]:
    """The scale that the column's name gives, as in "sure? (1-5)", else the usual one that holds all values seen."""
    given = re.search(r"\b(\d{1,3}) ?(?:-|\u2013|to) ?(\d{1,3})\b", name)
    if given and int(given[1]) <= min(seen) and max(seen) <= int(given[2]):
        return int(given[1]), int(given[2])
    ends = ((0, 1), (1, 5), (0, 5), (1, 7), (1, 10), (0, 10), (1, 100), (0, 100))
    fits = [pair for pair in ends if pair[0] <= min(seen) and max(seen) <= pair[1]]
    return fits[0] if fits else (min(seen), max(seen))


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
