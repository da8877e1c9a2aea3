"""What of a turn a chat template could leave out. Some drop turns of a role, or the words beside a tool call."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from raylign.data.row_fields import RowError
from raylign.data.types import Message

_MARK = "zq7words"

Render = Callable[[Sequence[Message], str, bool], str]
"""Turns, variables and whether an answer is opened, to text; raises RowError for turns that the template refuses."""


def without_each(turn: Message) -> Iterator[tuple[str, str, Message]]:
    """Name of a field, what is left out in words, and the turn without it: every field, and each of several calls."""
    extra: dict[str, object] = json.loads(turn.extra) if turn.extra else {}
    for name, value in extra.items():
        rest = {k: v for k, v in extra.items() if k != name}
        yield name, f"`{name}`", _with(turn, rest)
        if name == "tool_calls" and isinstance(value, list) and len(value) > 1:
            for k in range(len(value)):
                yield name, f"call {k + 1} of `{name}`", _with(turn, {**extra, name: [*value[:k], *value[k + 1 :]]})


def other_words(turn: Message) -> Message:
    """The turn with another `content`."""
    return replace(turn, content=_MARK)


def _with(turn: Message, extra: dict[str, object]) -> Message:
    return replace(turn, extra=json.dumps(extra, ensure_ascii=False) if extra else "")


def _names(fields: str) -> tuple[str, ...]:
    return tuple(sorted(json.loads(fields))) if fields else ()


class PrintedContent:
    """Tried with a word of its own in the turn's place, once for every order of roles and fields."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._known: dict[tuple[object, ...], bool] = {}

    def refuse_lost(self, turns: Sequence[Message], variables: str) -> None:
        """Raises RowError naming the first turn whose `content` is nowhere in what the template writes."""
        for i, turn in enumerate(turns):
            if turn.content.strip() and not self._printed(turns, i, variables):
                beside = " beside its other fields" if turn.extra else ""
                raise RowError(
                    f"the chat template does not print the `content` of the {turn.role} turn {i + 1}{beside}, so it "
                    "would be lost; remove it, or use a template that prints it"
                )

    def _printed(self, turns: Sequence[Message], i: int, variables: str) -> bool:
        """In the conversation up to the turn, or else in a longer part: some print the system's words last."""
        marked = (*turns[:i], other_words(turns[i]), *turns[i + 1 :])
        names = _names(variables)
        refused_all = True
        for end in range(i + 1, len(turns) + 1):
            key = (i, names, tuple((m.role, _names(m.extra)) for m in turns[:end]))
            if key not in self._known:
                shown = [self._shown(marked[:end], variables, opened) for opened in (False, True)]
                if all(text is None for text in shown):
                    continue
                self._known[key] = any(_MARK in text for text in shown if text)
            if self._known[key]:
                return True
            refused_all = False
        return refused_all  # then rendering the row itself says why

    def _shown(self, turns: Sequence[Message], variables: str, opened: bool) -> str | None:
        """In small letters: a template may change the case."""
        try:
            return self._render(turns, variables, opened).lower()
        except RowError:
            return None
