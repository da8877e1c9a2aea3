"""Personal data and secrets become placeholders, the same one for the same thing throughout a conversation.

The whole frame is searched by Rust's regex engine; only conversations in which something was found are rewritten.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl
from raylign.feedback.clean.patterns import NAME_INTRODUCED, PATTERNS, Pattern, found, named
from raylign.feedback.events import hash_user
from raylign.feedback.turns import changed
from raylign.feedback.working import REDACTED

_LABELS = ("persona", "topic", "locale")
_NAME = re.compile(NAME_INTRODUCED)
_COMPILED = tuple((pattern, re.compile(pattern.regex)) for pattern in PATTERNS)
_GROUP = re.compile(r"\w*")
_SOURCE = re.compile(r"[a-z][a-z0-9_\-]*:")
_PLACED = re.compile(r"<[A-Z_]+_\d+>")
_RAW_ID = re.compile(
    r"""(\b(?:user|annotator|owner|author|email|login|completed_by)(?:_?(?:id|name|hash))?["']?\s*[:=]\s*)"""
    r"""("[^"]*"?|[^\s,}\]]+)""",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Redacted:
    """The frame with placeholders, and how many different things of each type were replaced."""

    frame: pl.DataFrame
    counts: dict[str, int]


@dataclass(slots=True)
class Scope:
    """The placeholders of one conversation."""

    known: dict[tuple[str, str], str] = field(default_factory=dict)
    numbers: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)
    regions: tuple[str, ...] = ()  # countries whose phone numbers are looked for besides the usual ones

    def placeholder(self, kind: str, text: str) -> str:
        """The one for this thing, new or known."""
        key = (
            kind,
            text.lower()
            if kind == "EMAIL"
            else re.sub(r"[ \-./()\u00a0]", "", text)
            if kind in ("PHONE", "CARD", "IBAN")
            else text,
        )
        if key not in self.known:
            self.numbers[kind] += 1
            self.known[key] = f"<{kind}_{self.numbers[kind]}>"
        return self.known[key]

    def introduce(self, text: str) -> None:
        """Remember the names that people give as theirs."""
        given = (named(match) for match in _NAME.finditer(text))
        self.names += [name for name in dict.fromkeys(given) if name and name not in self.names]

    def redact(self, text: str) -> str:
        """The text with everything that was found replaced."""
        for pattern, compiled in _COMPILED:
            text = self._without(pattern, compiled, text)
        for name in self.names:
            for form in dict.fromkeys((name, *(part for part in name.split() if len(part) > 2))):
                if form in text:
                    whole = (
                        re.escape(form) if "\u4e00" <= form[0] <= "\u9fff" else rf"(?<![\w<]){re.escape(form)}(?!\w)"
                    )
                    text = re.sub(whole, self.placeholder("NAME", name), text)
        return text

    def _without(self, pattern: Pattern, compiled: re.Pattern[str], text: str) -> str:
        parts, done, position = [], 0, 0
        while match := compiled.search(text, position):
            start, end = found(pattern, text, match, self.regions)
            if end <= start or _PLACED.match(text, start):
                # Something real may begin inside what is none as a whole: on from its first group of digits or letters.
                step = _GROUP.match(text, max(start, position))
                position = step.end() if step and step.end() > position else max(start, position) + 1
                continue
            parts += [text[done:start], self.placeholder(pattern.name, text[start:end])]
            done = position = end
        return "".join((*parts, text[done:]))


def redact_text(text: str) -> str:
    """One text on its own."""
    return redact_together((text,))[0]


def redact_together(texts: Sequence[str], regions: Sequence[str] = ()) -> tuple[str, ...]:
    """Texts that are read together: the same placeholder for the same thing in all of them."""
    scope = Scope(regions=tuple(region.upper() for region in regions))
    for text in texts:
        scope.introduce(text)
    return tuple(scope.redact(text) for text in texts)


def redact_excerpt(text: str) -> str:
    """The beginning of a broken row: ids beside names like `user_id` go too."""
    return redact_text(_RAW_ID.sub(r'\1"<ID>"', text))


def hide_id(raw: str, salt: str) -> str:
    """An event's or conversation's id, or a hash in its place where it is somebody's address, number or secret."""
    source, colon, own = raw.partition(":") if _SOURCE.match(raw) else ("", "", raw)
    if redact_text(own) == own:
        return raw
    return f"{source}{colon}id-{hash_user(own, salt)}"


def hide_ids(events: pl.DataFrame, salt: str) -> pl.DataFrame:
    """An event frame without personal data in its ids; the same id stays the same."""
    hidden = []
    for name in ("event_id", "conversation_id"):
        ids = events.select(pl.col(name)).filter(pl.col(name).str.contains(_ANY)).unique()
        table = {raw: hide_id(raw, salt) for raw in ids[name] if raw is not None}
        hidden.append(pl.col(name).replace(table) if table else pl.col(name))
    return events.with_columns(hidden)


def regions_of(locales: pl.Series) -> tuple[str, ...]:
    """The countries that locales name, sorted: GB of en-GB."""
    named = locales.drop_nulls().unique().str.extract(r"^[A-Za-z]{2,3}(?:[-_][A-Za-z]{4})?[-_]([A-Za-z]{2})\b", 1)
    return tuple(sorted(named.drop_nulls().str.to_uppercase().unique()))


def redact_frame(work: pl.DataFrame, regions: Sequence[str] = ()) -> Redacted:
    """A working frame with placeholders in its texts and labels.

    Phone numbers are recognised by the numbering plans of the largest countries, of the log's locales and of `regions`.
    """
    looked_at = tuple(dict.fromkeys((*(region.upper() for region in regions), *regions_of(work["locale"]))))
    found = pl.any_horizontal(*(pl.col(name).str.contains(_ANY).fill_null(False) for name in (*REDACTED, *_LABELS)))
    marked = work.with_row_index("row").with_columns(
        scope=pl.coalesce("conversation_id", pl.concat_str(pl.lit("\x1f"), "event_id")), found=found
    )
    scopes = marked.filter("found").select("scope").unique()
    if scopes.is_empty():
        return Redacted(work, {})
    columns = ["row", "scope", *REDACTED, *_LABELS]
    touched = marked.select(columns).join(scopes, on="scope", how="semi").sort("scope", "row")
    counts: Counter[str] = Counter()
    rewritten = pl.DataFrame(
        list(_rewrite(touched, counts, looked_at)),
        schema={"row": pl.UInt32, **dict.fromkeys((*REDACTED, *_LABELS), pl.String)},
        orient="row",
    )
    # What is kept stays where it is in memory: only the rewritten rows' texts are there besides.
    told = marked.select("row").join(
        rewritten.with_columns(rewritten=True), on="row", how="left", maintain_order="left"
    )
    new = told["rewritten"].fill_null(False)
    frame = work.with_columns(
        pl.when(new).then(told[name]).otherwise(pl.col(name)).alias(name) for name in (*REDACTED, *_LABELS)
    )
    return Redacted(frame, dict(sorted(counts.items())))


def _rewrite(touched: pl.DataFrame, counts: Counter[str], regions: tuple[str, ...]) -> Iterator[tuple[object, ...]]:
    """The rows of each conversation in turn; names count wherever in it they were introduced."""
    for rows in _by_scope(touched.iter_rows()):
        scope = Scope(regions=regions)
        for row in rows:
            for text in row[2:]:
                if text:
                    scope.introduce(text)
        for row in rows:
            yield (row[0], *(changed(text, scope.redact) if text else text for text in row[2:]))
        counts.update(scope.numbers)


def _by_scope(rows: Iterator[tuple]) -> Iterator[Sequence[tuple]]:
    group: list[tuple] = []
    for row in rows:
        if group and row[1] != group[0][1]:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


_ANY = "|".join(f"(?:{pattern.regex})" for pattern in (*PATTERNS,)) + f"|(?:{NAME_INTRODUCED})"

NOT_COVERED = (
    "Names that nobody introduces, postal addresses and other text by which somebody may be known are not looked for: "
    "that takes a model, and privacy.names_model names none."
)
"""For whoever reads what was built without a model."""
