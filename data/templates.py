"""The chat template: turns and their fields to text, with nothing lost on the way and the date of the run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time
from typing import TYPE_CHECKING

from jinja2 import Environment, meta, nodes
from jinja2.exceptions import TemplateError
from raylign.data.printed_content import PrintedContent, without_each
from raylign.data.row_fields import RowError, calls_of
from raylign.data.types import Message

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase

_REFUSALS = (
    TemplateError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
)
"""What a template's own code may raise: whatever it does, it is the template that refuses."""

_BOOKKEEPING = frozenset({"tool_call_id"})
"""Fields that say which turn belongs to which; no words are lost when a template does not print them."""


class ChatTemplate:
    """Renders conversations with one tokenizer's template. Raises RowError for turns that it refuses."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, today: date | None = None) -> None:
        """`today`: what templates print as the date; None: this day. A run gives its own (records/manifest.py)."""
        self._tokenizer = tokenizer
        self._strftime = datetime.combine(today or date.today(), time()).strftime
        self._arguments_as_text: bool | None = None  # not tried yet
        self._printed = PrintedContent(lambda turns, given, opened: self.render(turns, given, open_answer=opened))

    def render(self, turns: Sequence[Message], variables: str, *, open_answer: bool) -> str:
        """The conversation as text; `open_answer`: with the opening of the answer that is to be written."""
        given: dict[str, object] = {"strftime_now": self._strftime, **_object(variables)}
        conversation = [{"role": m.role, "content": m.content, **self._fields(m)} for m in turns]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=open_answer, **given
            )
        except (
            TemplateError,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise RowError(f"the chat template refuses the turns ({error})") from error
        return rendered

    def _fields(self, turn: Message) -> dict[str, object]:
        """A turn's own fields, with the arguments of its calls as the template writes them out right.

        Most templates write them with `tojson`, which would quote JSON text once more; some join them as text.
        """
        fields = _object(turn.extra)
        for call in calls_of(fields):
            given = call["arguments"]
            if self._wants_text():
                call["arguments"] = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
            else:
                call["arguments"] = json.loads(given) if isinstance(given, str) else given
        return fields

    def _wants_text(self) -> bool:
        """True when an object as arguments is refused by the template, or written as Python's, not JSON's, form."""
        if self._arguments_as_text is None:
            call = {"id": "abcdefgh1", "type": "function", "function": {"name": "n7", "arguments": {"a7": "v7"}}}
            turns = (Message("user", "a"), Message("assistant", "", json.dumps({"tool_calls": [call]})))

            def tried(as_text: bool) -> str:
                self._arguments_as_text = as_text
                try:
                    return self.render(turns, "", open_answer=False)
                except RowError:
                    return ""

            written = tried(as_text=False)
            wrong = not written or "'a7'" in written
            self._arguments_as_text = wrong and '"a7"' in tried(as_text=True)
        return self._arguments_as_text

    def prints_tools(self, tools: Sequence[Mapping[str, object]]) -> bool:
        """Whether the template writes the tools that it is given."""
        asked = (Message("user", "a"),)
        try:
            with_them = self.render(asked, json.dumps({"tools": list(tools)}), open_answer=True)
            return with_them != self.render(asked, "", open_answer=True)
        except RowError:
            return False

    def refuse_unused(self, turns: Sequence[Message], variables: str) -> None:
        """Raises RowError naming a field of a turn, or of the row, that does not change what is rendered, one of
        several calls and a turn's `content` among them.

        Each field of a turn is tried at the turn's own place, as the last: templates drop old reasoning on purpose.
        """
        self._printed.refuse_lost(turns, variables)
        fields = _object(variables)
        if fields:
            self._refuse_unused_variables(turns, fields)
        for i, turn in enumerate(turns):
            for name, what, without in without_each(turn):
                if name in _BOOKKEEPING or (name == "name" and turn.role == "tool"):
                    continue
                if self._same((*turns[:i], turn), (*turns[:i], without), variables):
                    raise RowError(
                        f"the chat template does not use {what} of the {turn.role} turn {i + 1}, so it would be "
                        "lost; remove it, write it into `content`, or use a template that has it"
                    )

    def drops(self, turns: Sequence[Message], turn: int, variables: str) -> bool:
        """True when a field of `turn` is not rendered because more turns follow (old reasoning)."""
        extra = _object(turns[turn].extra)
        for name in extra.keys() - _BOOKKEEPING:
            rest = {k: v for k, v in extra.items() if k != name}
            without = replace(turns[turn], extra=json.dumps(rest, ensure_ascii=False) if rest else "")
            if self._same(turns, (*turns[:turn], without, *turns[turn + 1 :]), variables):
                return True
        return False

    def _refuse_unused_variables(self, turns: Sequence[Message], fields: Mapping[str, object]) -> None:
        known = self._variables(has_tools="tools" in fields)
        for name in fields:
            rest = {k: v for k, v in fields.items() if k != name}
            without = json.dumps(rest, ensure_ascii=False) if rest else ""
            whole = json.dumps(fields, ensure_ascii=False)
            lost = name in ("tools", "documents") and all(
                self.render(turns, whole, open_answer=opened) == self.render(turns, without, open_answer=opened)
                for opened in (False, True)
            )
            if name not in known or lost:
                raise RowError(
                    f"the chat template does not use `{name}`, so it would be lost; remove it, or use a template "
                    "that has it"
                )

    def _variables(self, *, has_tools: bool) -> frozenset[str]:
        """Names that the template reads from outside."""
        source = self._tokenizer.get_chat_template(tools=[{}] if has_tools else None)
        return frozenset(meta.find_undeclared_variables(parse_template(source)))

    def _same(self, turns: Sequence[Message], others: Sequence[Message], variables: str) -> bool:
        whole = self.render(turns, variables, open_answer=False)
        try:
            return whole == self.render(others, variables, open_answer=False)
        except RowError:
            return False  # the template asks for the field


def parse_template(source: str) -> nodes.Template:
    """The template's parts; it is never run. Raises jinja2.TemplateSyntaxError."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    return environment.parse(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source))  # a tag of transformers' own


def _object(text: str) -> dict[str, object]:
    return dict(json.loads(text)) if text else {}


def prints_questions(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template prints what a user says, tried with a word; True where it refuses the trial's turns."""
    mark = "question7 of a person"
    try:
        shown = ChatTemplate(tokenizer).render((Message("user", mark),), "", open_answer=True)
    except RowError:
        return True
    return mark in shown.lower()
