"""Personal data and secrets become placeholders, the same one for the same thing throughout a conversation.

The whole frame is searched by Rust's regex engine; only conversations in which something was found are rewritten.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl
from raylign.feedback.clean.patterns import NAME_INTRODUCED, PATTERNS
from raylign.feedback.working import TEXTS

_LABELS = ("persona", "topic", "locale")
_NAME = re.compile(NAME_INTRODUCED)
_COMPILED = tuple((pattern, re.compile(pattern.regex)) for pattern in PATTERNS)
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

    def placeholder(self, kind: str, text: str) -> str:
        """The one for this thing, new or known."""
        key = (kind, text.lower() if kind == "EMAIL" else re.sub(r"[ \-./()]", "", text) if kind == "PHONE" else text)
        if key not in self.known:
            self.numbers[kind] += 1
            self.known[key] = f"<{kind}_{self.numbers[kind]}>"
        return self.known[key]

    def introduce(self, text: str) -> None:
        """Remember the names that people give as theirs."""
        self.names += [name for name in _NAME.findall(text) if name not in self.names]

    def redact(self, text: str) -> str:
        """The text with everything that was found replaced."""
        for pattern, compiled in _COMPILED:

            def replace(match: re.Match[str], pattern=pattern) -> str:  # type: ignore[no-untyped-def]
                group = 1 if match.re.groups else 0
                found = match.group(group)
                if _PLACED.fullmatch(found) or not pattern.real(found):
                    return match.group(0)
                whole, start = match.group(0), match.start(group) - match.start(0)
                return whole[:start] + self.placeholder(pattern.name, found) + whole[start + len(found) :]

            text = compiled.sub(replace, text)
        for name in self.names:
            for form in dict.fromkeys((name, *(part for part in name.split() if len(part) > 2))):
                if form in text:
                    text = re.sub(rf"(?<![\w<]){re.escape(form)}(?!\w)", self.placeholder("NAME", name), text)
        return text


def redact_text(text: str) -> str:
    """One text on its own."""
    scope = Scope()
    scope.introduce(text)
    return scope.redact(text)


def redact_excerpt(text: str) -> str:
    """The beginning of a broken row: ids beside names like `user_id` go too."""
    return redact_text(_RAW_ID.sub(r'\1"<ID>"', text))


def redact_frame(work: pl.DataFrame) -> Redacted:
    """A working frame with placeholders in its texts and labels."""
    found = pl.any_horizontal(*(pl.col(name).str.contains(_ANY).fill_null(False) for name in (*TEXTS, *_LABELS)))
    marked = work.with_row_index("row").with_columns(
        scope=pl.coalesce("conversation_id", pl.concat_str(pl.lit("\x1f"), "event_id")), found=found
    )
    scopes = marked.filter("found").select("scope").unique()
    if scopes.is_empty():
        return Redacted(work, {})
    columns = ["row", "scope", *TEXTS, *_LABELS]
    touched = marked.select(columns).join(scopes, on="scope", how="semi").sort("scope", "row")
    counts: Counter[str] = Counter()
    rewritten = pl.DataFrame(
        list(_rewrite(touched, counts)),
        schema={"row": pl.UInt32, **dict.fromkeys((*TEXTS, *_LABELS), pl.String)},
        orient="row",
    )
    rest = marked.drop("scope", "found")
    changed = rest.select(pl.exclude(*TEXTS, *_LABELS)).join(rewritten, on="row", how="inner")
    kept = rest.join(rewritten.select("row"), on="row", how="anti")
    frame = pl.concat([kept, changed.select(kept.columns)]).sort("row").drop("row")
    return Redacted(frame, dict(sorted(counts.items())))


def _rewrite(touched: pl.DataFrame, counts: Counter[str]) -> Iterator[tuple[object, ...]]:
    """The rows of each conversation in turn; names count wherever in it they were introduced."""
    for rows in _by_scope(touched.iter_rows()):
        scope = Scope()
        for row in rows:
            for text in row[2:]:
                if text:
                    scope.introduce(text)
        for row in rows:
            yield (row[0], *(scope.redact(text) if text else text for text in row[2:]))
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
