"""Where an answer lies in a conversation that a chat template has rendered, as text: what it is sampled from, what was
sampled, and its end. Told by rendering the conversation up to it, and verified. No tokens here: data/joining.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raylign.data.end_tokens import EndTokens
from raylign.data.printed_content import other_words, without_each
from raylign.data.row_fields import EarlierTurnDiffers, RowError
from raylign.data.templates import ChatTemplate
from raylign.data.types import Message

_THOUGHT = re.compile(r"<(think|thinking|seed:think)>\s*$")
_REWRITES = (
    "the chat template rewrites earlier answers once more turns follow (drops their reasoning, say), so they cannot be "
    "trained in the form that is sampled; use a template that keeps them, or rows with the last answer only"
)
_NO_END = (
    "the chat template writes no end token after an earlier answer, so stopping there would not be learned; use rows "
    "with the last answer only"
)
_NOT_THE_SAME = (
    "the chat template does not render the prompt the same with an answer after it, so the answer's tokens cannot be "
    "located; use a template that keeps earlier turns as they were"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An assistant turn as text."""

    opening: str  # all before it, as it is sampled from
    body: str
    end_id: int
    closed: str  # opening, body and end token, as later turns see them


class Replies:
    """Assistant turns of rendered conversations. What cannot be located raises RowError."""

    def __init__(self, template: ChatTemplate, ends: EndTokens) -> None:
        """Both of one tokenizer."""
        self._template = template
        self._ends = ends

    def find(self, messages: Sequence[Message], trained: Sequence[int], variables: str) -> list[Reply]:
        """Each of the `trained` turns, in order. Raises EarlierTurnDiffers for a template that renders an earlier one
        otherwise once more follow.
        """
        self._template.refuse_unused(messages, variables)
        whole = self._template.render(messages, variables, open_answer=False)
        found: list[Reply] = []
        for turn in trained:
            reply = self._reply(messages, turn, whole, variables)
            if turn != len(messages) - 1:
                self._refuse_another_form(messages[: turn + 1], reply, variables)
            if found and not reply.opening.startswith(found[-1].closed):
                raise EarlierTurnDiffers(_REWRITES)
            found.append(reply)
        return found

    def _refuse_another_form(self, messages: Sequence[Message], reply: Reply, variables: str) -> None:
        """Raises EarlierTurnDiffers when the last of `messages` was sampled otherwise than later turns see it."""
        whole = self._template.render(messages, variables, open_answer=False)
        sampled = self._reply(messages, len(messages) - 1, whole, variables)
        if sampled.body.strip() != reply.body.strip():  # each with an end token that the engine stops at
            raise EarlierTurnDiffers(_REWRITES)

    def _reply(self, messages: Sequence[Message], turn: int, whole: str, variables: str) -> Reply:
        opening = self._template.render(messages[:turn], variables, open_answer=True)
        if turn == len(messages) - 1:
            if messages[turn].extra:
                self._refuse_second_block(messages, opening, variables)
                return self._rendered(opening, whole)
            return self._last(opening, messages[turn].content, self._shown(messages, opening, whole, variables))
        if not whole.startswith(opening):
            raise EarlierTurnDiffers(_REWRITES)
        if messages[turn].extra:
            if self._template.drops(messages, turn, variables):
                raise EarlierTurnDiffers(_REWRITES)
            if self._ends.first(self._template.render(messages[: turn + 1], variables, open_answer=False)) is None:
                raise EarlierTurnDiffers(_NO_END)
            self._refuse_second_block(messages[: turn + 1], opening, variables)
            return self._rendered(opening, whole)
        return self._earlier(opening, messages[turn].content, whole)

    def _shown(self, messages: Sequence[Message], opening: str, whole: str, variables: str) -> str:
        """`whole`; where the template changes the white space at the last answer's ends, the same of the answer without
        any: so that what stands before it is the template's own and is not put beside the answer's."""
        content = messages[-1].content
        bare = content.strip()
        if not bare or bare == content or content in whole[len(opening) :]:
            return whole
        return self._template.render(
            (*messages[:-1], replace(messages[-1], content=bare)), variables, open_answer=False
        )

    def _refuse_second_block(self, messages: Sequence[Message], opening: str, variables: str) -> None:
        """Of the last of `messages`, a turn with calls or reasoning. Raises RowError where the template ends the answer
        before it has written all of it (the calls as a block of their own, say), which no sampling goes on to write.
        """
        turn, before = messages[-1], messages[:-1]
        whole = self._template.render(messages, variables, open_answer=False)
        reply = self._rendered(opening, whole)
        if not whole[len(reply.closed) :].strip():
            return
        changed = [(what, other) for _, what, other in without_each(turn)]
        for what, other in [*changed, *([("`content`", other_words(turn))] if turn.content.strip() else [])]:
            try:
                rest = self._template.render((*before, other), variables, open_answer=False)
                same = self._rendered(opening, rest).body == reply.body
            except RowError:
                continue  # the template asks for it
            if same:
                raise RowError(
                    f"the chat template ends the answer before it writes {what} of the turn, and sampling stops there; "
                    "make it two turns, or use a template that writes both as one answer"
                )

    def _rendered(self, opening: str, alone: str) -> Reply:
        """A turn with calls or reasoning: all that the template writes of it."""
        if not alone.startswith(opening):
            raise RowError(_NOT_THE_SAME)
        rest = alone[len(opening) :]
        end = self._ends.first(rest)
        if end is None:
            return Reply(opening, rest.rstrip(), self._ends.eos_id, alone)
        return Reply(opening, rest[: end[0]], end[2], opening + rest[: end[1]])

    def _earlier(self, opening: str, content: str, whole: str) -> Reply:
        """An answer that more turns follow: as the template has it from then on."""
        rest = whole[len(opening) :]
        answer = content if content in rest else content.strip()
        at = self._found(rest, answer)
        if at < 0:
            raise EarlierTurnDiffers(_REWRITES)
        end = self._ends.first(rest[at + len(answer) :])
        if end is None or rest[at + len(answer) : at + len(answer) + end[0]].strip():
            raise EarlierTurnDiffers(_NO_END)
        body = rest[: at + len(answer) + end[0]]
        return Reply(opening, body, end[2], opening + rest[: at + len(answer) + end[1]])

    def _last(self, opening: str, content: str, whole: str) -> Reply:
        """The answer word for word, with what the template writes before it and the end token it writes after it."""
        tag = _THOUGHT.search(opening)
        if tag and content.startswith(f"<{tag[1]}>"):
            content = content.removeprefix(f"<{tag[1]}>").lstrip("\n")
        before = next((o for o in (opening, opening.rstrip()) if whole.startswith(o)), None)
        if before is None and not (tag and whole.startswith(opening[: tag.start()])):
            raise RowError(_NOT_THE_SAME)
        rest = whole[len(before) :] if before is not None else whole[len(opening[: tag.start()]) if tag else 0 :]
        answer = content if content in rest else content.strip()
        at = self._found(rest, answer)
        lead = rest[:at] if at >= 0 and before == opening else ""
        if tag and f"</{tag[1]}>" not in lead + content:
            raise RowError(
                f"the chat template opens every answer with a thought (<{tag[1]}>) and this answer does not close it; "
                f"give the reasoning up to </{tag[1]}>, or chat_template_kwargs that turn thinking off"
            )
        after = rest[at + len(answer) :] if at >= 0 else rest
        end = self._ends.first(after)
        tail = after[: end[0]] if end and at >= 0 and not after[: end[0]].strip() else ""
        if answer != content and lead.isspace():  # the template strips: the answer's own white space is kept instead
            tail = ""
        end_id = end[2] if end else self._ends.eos_id
        return Reply(opening, lead + content + tail, end_id, whole)

    def _found(self, rest: str, answer: str) -> int:
        """Where the answer stands in what the template writes; -1 for nowhere, and where its words are only found in or
        after the first end token, for then the template has changed them."""
        at, end = rest.find(answer), self._ends.first(rest)
        return -1 if end and not self._ends.first(answer) and at + len(answer) > end[0] else at
