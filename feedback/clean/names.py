"""Names and addresses that a model finds become placeholders, the same one for the same name in a conversation.

It works on what the patterns of feedback/clean/personal_data.py have left, some thousand texts at a time, each
different text once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
from raylign.feedback.clean.entities import FindSpans, Span, is_code
from raylign.feedback.turns import ROLE, TURN, changed
from raylign.feedback.working import REDACTED

AT_ONCE = 2000
"""Different texts that a model is given at a time, about."""

_PLACED = re.compile(r"<([A-Z_]+)_(\d+)>")
_Row = tuple[int, tuple[str | None, ...]]  # its place in the frame, and REDACTED


@dataclass(slots=True)
class _Names:
    """The placeholders of one conversation, after those that stand in it already."""

    numbers: Counter[str] = field(default_factory=Counter)
    known: dict[tuple[str, str], str] = field(default_factory=dict)
    new: Counter[str] = field(default_factory=Counter)

    def see(self, text: str) -> None:
        for kind, number in _PLACED.findall(text):
            self.numbers[kind] = max(self.numbers[kind], int(number))

    def placeholder(self, kind: str, name: str) -> str:
        key = (kind, " ".join(name.split()))
        if key not in self.known:
            self.numbers[kind] += 1
            self.new[kind] += 1
            self.known[key] = f"<{kind}_{self.numbers[kind]}>"
        return self.known[key]

    def without(self, text: str, spans: Sequence[Span]) -> str:
        parts, done = [], 0
        for span in spans:
            parts += [text[done : span.start], self.placeholder(span.kind, text[span.start : span.end])]
            done = span.end
        return "".join((*parts, text[done:]))

    def without_known(self, text: str) -> str:
        """Where the model has missed a name that it found elsewhere in the conversation, as a whole word."""
        for (_, name), placeholder in sorted(self.known.items(), key=lambda item: -len(item[0][1])):
            if len(name) > 2 and name in text:
                whole = rf"(?<![\w<]){re.escape(name)}(?!\w)"
                places = [m.span() for m in re.finditer(whole, text) if not is_code(text, *m.span())]
                for start, end in reversed(places):
                    text = text[:start] + placeholder + text[end:]
        return text


def without_names(work: pl.DataFrame, find: FindSpans) -> tuple[pl.DataFrame, dict[str, int]]:
    """A working frame without the names and addresses that `find` finds; how many different ones, by kind."""
    counts: Counter[str] = Counter()
    rewritten = pl.DataFrame(
        list(_rewritten(work, find, counts)),
        schema={"row": pl.UInt32, **dict.fromkeys(REDACTED, pl.String)},
        orient="row",
    )
    told = pl.DataFrame({"row": pl.int_range(work.height, dtype=pl.UInt32, eager=True)}).join(
        rewritten.with_columns(rewritten=True), on="row", how="left", maintain_order="left"
    )
    new = told["rewritten"].fill_null(False)
    frame = work.with_columns(pl.when(new).then(told[name]).otherwise(pl.col(name)).alias(name) for name in REDACTED)
    return frame, dict(sorted(counts.items()))


def groups_without_names(groups: Sequence[Sequence[str]], find: FindSpans) -> list[tuple[str, ...]]:
    """The same of texts that are read together, group by group."""
    said = list(dict.fromkeys(text for group in groups for text in _contents(group)))
    spans: dict[str, Sequence[Span]] = {}
    for first in range(0, len(said), AT_ONCE):
        some = said[first : first + AT_ONCE]
        spans |= {text: found for text, found in zip(some, find(some), strict=True) if found}
    cleaned = []
    for group in groups:
        changed = [texts for _, *texts in _cleaned([(0, tuple(group))], spans, Counter())]
        cleaned.append(tuple(str(text) for text in changed[0]) if changed else tuple(group))
    return cleaned


def texts_without_names(texts: pl.Series, find: FindSpans) -> pl.Series:
    """The same of texts that stand alone."""
    given = texts.drop_nulls().unique(maintain_order=True).to_list()
    table: dict[str, str] = {}
    for first in range(0, len(given), AT_ONCE):
        some = given[first : first + AT_ONCE]
        for text, spans in zip(some, find(some), strict=True):
            if spans:
                names = _Names()
                names.see(text)
                table[text] = names.without(text, spans)
    return texts.replace(table) if table else texts


def _rewritten(work: pl.DataFrame, find: FindSpans, counts: Counter[str]) -> Iterator[tuple[object, ...]]:
    """The rows in which something was found."""
    for talks in _portions(work):
        said = list(dict.fromkeys(text for talk in talks for _, texts in talk for text in _contents(texts)))
        spans = {text: found for text, found in zip(said, find(said), strict=True) if found}
        for talk in talks:
            yield from _cleaned(talk, spans, counts)


def _cleaned(
    talk: Sequence[_Row], spans: Mapping[str, Sequence[Span]], counts: Counter[str]
) -> Iterator[tuple[object, ...]]:
    """The changed rows of one conversation."""
    contents = [text for _, texts in talk for text in _contents(texts)]
    if not any(text in spans for text in contents):
        return
    names = _Names()
    for text in contents:
        names.see(text)
    # First all that was found, so that a name found late is known in the turns before it.
    marked = [[_each(text, lambda t: names.without(t, spans.get(t, ()))) for text in texts] for _, texts in talk]
    counts.update(names.new)
    for (row, before), texts in zip(talk, marked, strict=True):
        after = [_each(text, names.without_known) for text in texts]
        if after != list(before):
            yield (row, *after)


def _portions(work: pl.DataFrame) -> Iterator[list[list[_Row]]]:
    """Whole conversations, as many as hold about AT_ONCE texts, in the order of their ids."""
    keys = work.select(
        scope=pl.coalesce("conversation_id", pl.concat_str(pl.lit("\x1f"), "event_id")),
        row=pl.int_range(pl.len(), dtype=pl.UInt32),
    ).sort("scope", "row")
    talks: list[list[_Row]] = []
    last, held = None, 0
    for part in keys.iter_slices(AT_ONCE):
        texts = work.select(REDACTED)[part["row"]]
        for scope, row, given in zip(part["scope"], part["row"], texts.iter_rows(), strict=True):
            if scope != last:
                if held >= AT_ONCE:
                    yield talks
                    talks, held = [], 0
                talks.append([])
                last = scope
            talks[-1].append((row, given))
            held += len(given)
    if talks:
        yield talks


def _contents(texts: Sequence[str | None]) -> Iterator[str]:
    """What was said: of a packed conversation each turn without its role."""
    found: list[str] = []

    def keep(content: str) -> str:
        found.append(content)
        return content

    for text in texts:
        _each(text, keep)
    yield from (content for content in found if any(letter.isalpha() for letter in content))


def _each(text: str | None, change: Callable[[str], str]) -> str | None:
    """A text, or each content of a packed conversation, changed."""
    if not text:
        return text
    turns = (turn.rpartition(ROLE) for turn in text.split(TURN))
    return TURN.join(f"{role}{mark}{changed(content, change)}" for role, mark, content in turns)
