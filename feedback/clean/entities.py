"""Names of people and postal addresses as a model marks them: labels of tokens become spans of a text.

Pure: the model is feedback/clean/entity_model.py, what becomes of spans is feedback/clean/names.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from raylign.feedback.clean.entity_labels import ADDRESS, NAME, Label
from raylign.feedback.clean.finds import Find

_PLACED = re.compile(r"<[A-Z_]+_\d+>")
_FENCED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_BETWEEN = {
    NAME: re.compile(r"[ \u00a0]{0,2}|[.][ \u00a0]|['\u2019\u2010\u00b7-]"),
    ADDRESS: re.compile(r"[\s,./-]{0,3}"),
}
_NAME = re.compile(r"[^\W\d_]+(?:(?:[.]?[ \u00a0]+|['\u2019\u2010\u00b7-]|[.])[^\W\d_]+)*[.]?")
_POSTCODE = re.compile(r"\d{4,6}(?:-\d{3,4})?")
_CODE_BEFORE = re.compile(r"[_\\@$%&=<{^]$|\w[.\[]$|::$")
_CODE_AFTER = re.compile(r"[_=<\[{\\@^(]|[.]\w|::|\s?(?:=|:=|\+=)\s?\S")


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` to before `end`, in characters."""

    start: int
    end: int
    kind: str  # one of KINDS


@dataclass(frozen=True, slots=True)
class Token:
    """A token's place in a text, in characters, and its label."""

    start: int
    end: int
    label: Label


FindSpans = Callable[[Sequence[str]], list[list[Span]]]
"""Spans of each text, in order, none overlapping another."""


def spans_of(text: str, tokens: Iterable[Token]) -> list[Span]:
    """Whole names and addresses, without what stands in code or arithmetic or is no name by its letters."""
    placed = [match.span() for match in _PLACED.finditer(text)]
    fenced: list[tuple[int, int]] | None = None
    found: list[Span] = []
    for span in _joined(text, tokens, placed):
        whole = _whole_words(text, span)
        if found and whole.start < found[-1].end:
            continue
        fenced = [match.span() for match in _FENCED.finditer(text)] if fenced is None else fenced
        in_fence = any(first <= whole.start < last for first, last in fenced)
        if _is_real(text, whole, in_fence=in_fence) and not _touches(whole, placed):
            found.append(whole)
    return found


def is_code(text: str, start: int, end: int) -> bool:
    """Whether what stands beside a place makes it part of an identifier, a path or a formula."""
    return bool(_CODE_BEFORE.search(text[max(0, start - 2) : start]) or _CODE_AFTER.match(text, end))


def _joined(text: str, tokens: Iterable[Token], placed: Sequence[tuple[int, int]]) -> Iterator[Span]:
    """Tokens of one kind that belong together; white space at the ends is none of it."""
    last: Span | None = None
    for token in tokens:
        given = text[token.start : token.end]
        start, end = token.start + len(given) - len(given.lstrip()), token.start + len(given.rstrip())
        if token.label.kind is None or end <= start or _touches(Span(start, end, NAME), placed):
            continue
        if last is not None and last.kind == token.label.kind:
            gap = text[last.end : start]
            if _BETWEEN[last.kind].fullmatch(gap) and not (token.label.begins and gap):
                last = replace(last, end=max(end, last.end))
                continue
        if last is not None:
            yield last
        last = Span(start, end, token.label.kind)
    if last is not None:
        yield last


def _touches(span: Span, places: Sequence[tuple[int, int]]) -> bool:
    return any(first < span.end and span.start < last for first, last in places)


def _whole_words(text: str, span: Span) -> Span:
    """With the rest of a word of which only some pieces were marked; scripts without case have no spaces to end at."""
    start, end = span.start, span.end
    while start > 0 and _cased(text[start]) and _cased(text[start - 1]):
        start -= 1
    while end < len(text) and _cased(text[end - 1]) and _cased(text[end]):
        end += 1
    return Span(start, end, span.kind)


def _cased(letter: str) -> bool:
    return letter.isalpha() and letter.lower() != letter.upper()


def _is_real(text: str, span: Span, *, in_fence: bool) -> bool:
    marked = text[span.start : span.end]
    if is_code(text, span.start, span.end):
        return False
    if span.kind == ADDRESS:
        if any(letter.isalpha() for letter in marked):
            return len(marked) > 2
        return _POSTCODE.fullmatch(marked) is not None and not Find.at(text, span.start, span.end).in_arithmetic
    one_cased_letter = len(marked) == 1 and _cased(marked)
    return _NAME.fullmatch(marked) is not None and not one_cased_letter and not (in_fence and " " not in marked)
