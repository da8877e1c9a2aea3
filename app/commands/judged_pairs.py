"""Files of judged pairs as text, for what a reward model is held against or fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylign.data.loading import RawRow, read_rows
from raylign.data.row_fields import RowError
from raylign.data.rows import Side, pair_row
from raylign.data.types import Message


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A judged pair as text."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    finished: tuple[bool, bool]
    variables: str
    columns: Mapping[str, object]


def read_pairs(sources: Sequence[str], most: int) -> tuple[list[JudgedPair], int]:
    """The first `most` pairs of the files, and how many rows before those could not be read. Raises DataError."""
    pairs: list[JudgedPair] = []
    left_out = 0
    for source in sources:
        for row in read_rows(source):
            if len(pairs) >= most:
                return pairs, left_out
            try:
                if not isinstance(row, RawRow):
                    raise RowError(row.reason)
                pairs.append(_pair(row))
            except RowError:
                left_out += 1
    return pairs, left_out


def _pair(row: RawRow) -> JudgedPair:
    parsed = pair_row(row.columns)
    turns = (Message("user", parsed.prompt),) if isinstance(parsed.prompt, str) else tuple(parsed.prompt)
    return JudgedPair(
        turns,
        _text(parsed.chosen),
        _text(parsed.rejected),
        (parsed.chosen_finished, parsed.rejected_finished),
        parsed.variables,
        row.columns,
    )


def _text(side: Side) -> str:
    if isinstance(side, str):
        return side
    if len(side) != 1 or side[0].extra:
        raise RowError("an answer of several turns, or with tool calls")
    return side[0].content
