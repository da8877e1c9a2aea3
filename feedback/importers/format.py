"""What an importer is: a name, how its rows are recognised, and how one row becomes events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
from raylign.feedback.events import Event
from raylign.feedback.importers.beside import refuse_unread
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.outcome import Parsed, RowProblem
from raylign.feedback.importers.score_table import LoggedValue, Scores
from raylign.feedback.importers.values import Hasher
from raylign.feedback.turns import TOOLS


@dataclass(frozen=True, slots=True)
class Context:
    """What every row of a log is read with."""

    source: str  # goes into `Event.source`
    hashed: Hasher
    companion: Mapping[str, Columns] = field(default_factory=dict)  # rows of the second file, by id
    companion_name: str = "the companion file"
    scores: Scores = field(default_factory=Scores)  # what every score of the log means

    def look_up(self, key: object, what: str) -> Columns:
        """The companion's row of this id. Raises RowProblem when there is none."""
        row = self.companion.get(f"{key}") if isinstance(key, str | int) else None
        if row is None:
            raise RowProblem(f"{what} `{str(key)[:60]}` is not in {self.companion_name}")
        return row


@dataclass(frozen=True, slots=True)
class Companion:
    """The second file a format needs (or may have)."""

    holds: str  # "the runs with prompts and answers"
    entries: Callable[[Columns], Iterable[tuple[object, Columns]]]  # ids and what is found by them; the first wins
    required: bool = True
    merge: Callable[[Columns, Columns], Columns] = lambda first, later: first  # two rows of one id


Parse = Callable[[Iterable[Row], Context], Iterator[Parsed]]
ParseLines = Callable[[Iterable[tuple[int, bytes]], Context], Iterator[Parsed]]


@dataclass(frozen=True, slots=True)
class Format:
    """One tool's way of writing feedback down."""

    name: str
    title: str
    recognises: Callable[[Columns], bool]
    parse: Parse
    parse_lines: ParseLines | None = None  # the same for JSON lines, without making a dict of each
    companion: Companion | None = None
    ids_from_content: bool = False  # equal rows are several judgements, not one row twice
    several: str = ""  # whose events are one judgement: a pattern of ids, its first group what they share
    scores: Callable[[Columns, Context], Iterable[LoggedValue]] | None = None  # the scores of a row, for the first pass


_PROBLEMS = (RowProblem, msgspec.ValidationError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError)
"""The last four are a shape of row nobody thought of: quarantined like the others, and marked by UNFORESEEN."""

UNFORESEEN = "not a shape rows of this format are known to have"

Judgements = Iterable[Event | str]
"""What one row holds: events, and for each judgement that cannot be one, why."""


def each(read: Callable[[Row, Columns, Context], Judgements]) -> Parse:
    """A parser from what is done with one row alone. `read` may raise RowProblem for the row as a whole."""

    def parse(rows: Iterable[Row], context: Context) -> Iterator[Parsed]:
        for row in rows:
            yield parsed(row, context, read)

    return parse


def each_whole(read: Callable[[Row, Columns, Context], Judgements]) -> Parse:
    """`each` of a data set whose rows have fixed columns: what else the model saw is not passed over in silence."""

    def whole(row: Row, columns: Columns, context: Context) -> Judgements:
        judgements = list(read(row, columns, context))
        events = [judgement for judgement in judgements if isinstance(judgement, Event)]
        if any(event.prompt[0].role == TOOLS for event in events):
            columns = {name: value for name, value in columns.items() if name != "tools"}
        refuse_unread(columns, "\n".join(text for event in events for text in _held(event)))
        return judgements

    return each(whole)


def _held(event: Event) -> Iterator[str]:
    """All texts of an event."""
    yield from (turn.content for turn in event.prompt)
    yield from (text for text in (event.response_a, event.response_b, event.corrected) if text)


def parsed(row: Row, context: Context, read: Callable[[Row, Columns, Context], Judgements]) -> Parsed:
    """One row read, whatever is wrong with it."""
    if row.columns is None:
        return Parsed(row.line, problems=(row.problem,), excerpt=row.excerpt)
    try:
        judgements = list(read(row, row.columns, context))
    except _PROBLEMS as problem:
        return Parsed(row.line, problems=(sentence(problem),), excerpt=row.excerpt)
    problems = [judgement for judgement in judgements if isinstance(judgement, str)]
    if not judgements:
        problems = ["holds no judgement"]
    events = [judgement for judgement in judgements if isinstance(judgement, Event)]
    return Parsed(row.line, events, problems, row.excerpt if problems else "")


def scores_of(format: Format, columns: Columns, context: Context) -> list[LoggedValue]:
    """What a row says by name; nothing where it cannot be read, which the second pass tells."""
    if format.scores is None:
        return []
    try:
        return list(format.scores(columns, context))
    except _PROBLEMS:
        return []


def attempt(make: Callable[..., Event], *arguments: object) -> Event | str:
    """One of several judgements in a row: the event, or why it is none."""
    try:
        return make(*arguments)
    except _PROBLEMS as problem:
        return sentence(problem)


def sentence(problem: Exception) -> str:
    """msgspec's "Expected `str`, got `int` - at `$.id`" with the field first; others as they are."""
    text = str(problem)
    if isinstance(problem, RecursionError):
        return "nested too deeply"
    if not isinstance(problem, RowProblem | msgspec.ValidationError):
        return f"{UNFORESEEN} ({type(problem).__name__})"
    if not isinstance(problem, msgspec.ValidationError):
        return text
    what, _, where = text.partition(" - at ")
    return f"{where.replace('$.', '') or 'the row'}: {what[:1].lower()}{what[1:]}"
