"""The tokens between two turns of a model: what its chat template writes around what an environment said.

Tokens in, tokens out: a turn that was sampled is never decoded and encoded again. What follows it is found on a trial
conversation, as the text that the template writes from the end of an assistant's turn to the opening of the next, and
only that text is tokenised. So the template may write nothing there that depends on what was said before; this is tried
when a writer is made. What an environment says can be no control token (data/plain_text.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

from raylign.data.end_tokens import EndTokens
from raylign.data.joining import TokenJoiner
from raylign.data.plain_text import PlainText
from raylign.data.row_fields import RowError, template_variables
from raylign.data.templates import ChatTemplate
from raylign.data.types import Message, Prompt

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase

_MARK = "zq7said"
_TRIAL = "zq8answer"


class TurnWriter:
    """Of one tokenizer and one list of tools."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]], today: date | None = None
    ) -> None:
        """`tools`: JSON schemas; empty: turns are answered by a user's. Raises RowError for a template that cannot be
        continued after a turn."""
        if tokenizer.chat_template is None:
            raise RowError("the model's tokenizer has no chat template, and turns need one; set data.chat_template")
        self._template = ChatTemplate(tokenizer, today)
        self._ends = EndTokens(tokenizer)
        self._joiner = TokenJoiner(tokenizer)
        self.in_template = bool(tools) and self._template.prints_tools(tools)
        """Whether the template itself writes the tools; else they stand in the system turn (data/tool_prompt.py)."""
        self.variables = json.dumps({"tools": list(tools)}, ensure_ascii=False) if self.in_template else ""
        self._tool_name = str(tools[0]["function"]["name"]) if tools else ""
        self._turn = self._trial_turn() if tools else Message("assistant", _MARK)
        self._refuse_dependent()
        self._plain = PlainText(tokenizer, self._joiner, self._trial_conversation(), (_MARK,))

    def reopened(self, prompt: Prompt, text: str) -> Prompt:
        """The prompt with `text` at the end of its last turn, as it is. Raises RowError."""

        def with_text(more: str) -> tuple[Message, ...]:
            last = prompt.messages[-1]
            return (*prompt.messages[:-1], replace(last, content=f"{last.content}{more}"))

        columns = json.loads(prompt.columns) if prompt.columns else {}
        given = json.loads(template_variables(columns) or "{}") | json.loads(self.variables or "{}")
        variables = json.dumps(given, ensure_ascii=False) if given else ""
        self._template.refuse_unused(with_text(text), variables)
        rendered = self._template.render(with_text(self._plain.hidden(text)), variables, open_answer=True)
        return replace(prompt, messages=with_text(text), token_ids=tuple(self._plain.continued((), rendered)))

    def continued(self, ids: Sequence[int], said: Sequence[str], names: Sequence[str]) -> list[int]:
        """The tokens that follow `ids`, at whose end a turn of the model's lies, through the opening of the next.

        `said`: what is answered, one for each call of the turn, by the tools of `names`. Where the turn has no end
        token (it was cut, or a stop text ended it) the template's is written first. Raises RowError when the template
        refuses or drops an answer.
        """
        hidden, by = [self._plain.hidden(one) for one in said], [self._plain.hidden(name) for name in names]
        text, end_id = self._after((Message("user", "a"), self._turn), hidden, by)
        closed = [*ids] if ids[-1] in self._ends.ids else [*ids, end_id]
        return self._plain.continued(closed, text)[len(ids) :]

    def words(self, ids: Sequence[int]) -> str:
        """A sampled turn as text, special tokens included, its end token left out: for reading only."""
        return self._joiner.decode(list(ids[:-1] if ids and ids[-1] in self._ends.ids else ids))

    def _after(self, before: Sequence[Message], said: Sequence[str], names: Sequence[str]) -> tuple[str, int]:
        """What the template writes after the end of the last of `before`, and the end token that it writes there."""
        turns = [*before, *(self._answer(text, name) for text, name in zip(said, names, strict=True))]
        whole = self._template.render(turns, self.variables, open_answer=True)
        at = whole.rfind(_MARK)
        end = self._ends.first(whole[at:]) if at >= 0 else None
        if end is None:
            raise RowError(
                "the chat template writes no end token after a turn that more turns follow, so where the next begins "
                "cannot be told; use a template that ends every turn"
            )
        text = whole[at + end[1] :]
        if lost := [one for one in said if one.strip() and not _holds(text, one)]:
            raise RowError(
                f"the chat template does not print what the environment says ({lost[0][:40]!r}); use another"
            )
        return text, end[2]

    def _answer(self, text: str, name: str) -> Message:
        if not self._tool_name:
            return Message("user", text)
        return Message("tool", text, json.dumps({"name": name, "tool_call_id": "abcdefgh1"}))

    def _trial_turn(self) -> Message:
        """A turn that calls a tool, in the template's own form where it has one."""
        call = {"id": "abcdefgh1", "type": "function", "function": {"name": self._tool_name, "arguments": {"a": _MARK}}}
        turn = Message("assistant", "", json.dumps({"tool_calls": [call]}))
        try:
            shown = self._template.render((Message("user", "a"), turn), self.variables, open_answer=False)
        except RowError:
            shown = ""
        return turn if _MARK in shown else Message("assistant", _MARK)

    def _trial_conversation(self) -> str:
        turns = (Message("user", "a"), self._turn, self._answer("b", self._tool_name or "user"), self._turn)
        return self._template.render(turns, self.variables, open_answer=True)

    def _refuse_dependent(self) -> None:
        """Raises RowError when what follows a turn is another text in a longer conversation."""
        names = [self._tool_name or "user"]
        short = self._after((Message("user", "a"), self._turn), [_TRIAL], names)
        asked = (Message("user", "c"), Message("assistant", "d"), Message("user", "e"))
        again = (Message("user", "a"), self._turn, self._answer("f", names[0]), self._turn)
        try:
            longer = {self._after((*asked, self._turn), [_TRIAL], names), self._after(again, [_TRIAL], names)}
        except RowError as error:
            raise RowError(f"the chat template cannot go on after several turns: {error}") from error
        if longer != {short}:
            raise RowError(
                "the chat template writes something else after a turn in a longer conversation, so turns cannot be "
                "continued without encoding sampled tokens again; use a template that does not"
            )


def _holds(text: str, said: str) -> bool:
    """Some templates write an answer as JSON, and most strip it."""
    wanted = said.strip()
    return wanted in text or json.dumps(wanted, ensure_ascii=False)[1:-1] in text or json.dumps(wanted)[1:-1] in text
