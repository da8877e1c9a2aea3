"""Prompts, answers and conversations of one tokenizer as ids, in the form that sampling has them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING

from raylign.data.chat_template import no_template
from raylign.data.end_tokens import EndTokens
from raylign.data.joining import TokenJoiner
from raylign.data.replies import Replies
from raylign.data.row_fields import RowError
from raylign.data.rows import Side
from raylign.data.templates import ChatTemplate
from raylign.data.tokenize import EncodedAnswer, EncodedText
from raylign.data.types import Message

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """Prompts and answers for one tokenizer. Rows that cannot be encoded raise RowError."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, system_prompt: str = "", today: date | None = None
    ) -> None:
        """`today`: the date that templates print; None: this day."""
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self._template = ChatTemplate(tokenizer, today)
        self._ends = EndTokens(tokenizer)
        self._replies = Replies(self._template, self._ends)
        self._joiner = TokenJoiner(tokenizer)
        self._special = frozenset(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)
        self._eos = str(tokenizer.eos_token)

    @property
    def has_template(self) -> bool:
        """True when the model was made for conversations."""
        return self._tokenizer.chat_template is not None

    def messages(self, prompt: Side) -> tuple[Message, ...]:
        """The turns of a prompt. Text is the user's turn, or for a model without a template simply the text."""
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        if self._system_prompt and self.has_template and turns[0].role != "system":
            return (Message("system", self._system_prompt), *turns)
        return turns

    def encode_prompt(self, prompt: Side, variables: str = "") -> tuple[int, ...]:
        """Ids ready to be sampled from: with the template's opening of an answer, or plain text with its BOS."""
        if not self.has_template:
            return self._plain_prompt(prompt, variables)
        turns = self.messages(prompt)
        self._template.refuse_unused(turns, variables)
        ids = self._joiner.ids(self._template.render(turns, variables, open_answer=True))
        if not ids:
            raise RowError("the prompt has no tokens")
        return tuple(ids)

    def encode_answer(self, prompt: Side, answer: Side, *, finished: bool = True, variables: str = "") -> EncodedAnswer:
        """The ids of `encode_prompt`, then the answer's own, ending with the end token and nothing after it.

        An answer that was cut off (`finished=False`) ends with its last word: an end token there was never sampled.
        Of an answer of several turns the assistant's are marked, each through its end token.
        """
        if not self.has_template:
            return self._plain_answer(prompt, answer, finished, variables)
        asked = self.messages(prompt)
        replies = (Message("assistant", answer),) if isinstance(answer, str) else answer
        if replies[0].role != "assistant" or replies[-1].role != "assistant":
            raise RowError("an answer must begin and end with an assistant turn; what comes before belongs to `prompt`")
        turns = (*asked, *replies)
        written = [i for i in range(len(asked), len(turns)) if turns[i].role == "assistant"]
        ids, spans = self._assemble(turns, written, variables, finished=finished)
        start = spans[0][0]
        others = tuple((a[1] - start, b[0] - start) for a, b in pairwise(spans))
        return EncodedAnswer(tuple(ids), start, others)

    def encode_reply(self, prompt: Side, answer: str, *, finished: bool = True, variables: str = "") -> EncodedAnswer:
        """As `encode_answer`, of an answer that was sampled: it may be empty, and then is its end token alone."""
        if answer:
            return self.encode_answer(prompt, answer, finished=finished, variables=variables)
        if not finished:
            raise RowError("the answer has no tokens")
        opening = self.encode_prompt(prompt, variables)
        return EncodedAnswer((*opening, self._ends.usual_id), len(opening))

    def encode_rendered(self, text: str, opening: str = "") -> EncodedAnswer:
        """Text that a template has been applied to already: its special tokens are read as such, and what follows the
        last end token is left out when it is white space.

        `opening`: the beginning that was sampled from, so that nothing merges over the boundary; "": not known, and
        then no token counts as the prompt's but the first.
        Raises RowError for text without a special token where the model has a chat template: nobody applied it.
        """
        if not text.startswith(opening):
            raise ValueError("the opening is not the text's beginning")
        ids = self._rendered_ids(opening) if opening else []
        start = len(ids)
        ids = self._joiner.continued(ids, text[len(opening) :], "the text") if ids else self._rendered_ids(text)
        ends = [i for i, token in enumerate(ids) if token in self._ends.ids]
        if ends and not self._joiner.decode(ids[ends[-1] + 1 :]).strip():
            ids = ids[: ends[-1] + 1]
        if self.has_template and not self._special & set(ids):
            raise RowError(
                "it holds no special token, so this model's chat template was not applied; send the text as the "
                "template writes it, or turns"
            )
        if not ids:
            raise RowError("the text has no tokens")
        return EncodedAnswer(tuple(ids), start or 1)

    def encode_conversation(
        self, turns: Sequence[Message], turn_weights: Sequence[float], variables: str = ""
    ) -> EncodedText:
        """A turn with a weight is trained from its first token to its end token; what follows the last is left out.

        Where a turn lies is found by rendering the conversation up to it, and verified. Raises EarlierTurnDiffers for a
        template that renders an earlier trained turn otherwise once more follow.
        """
        if not self.has_template:
            raise RowError(
                no_template("`messages` needs a chat template") + ", or give `prompt` and `completion` as text"
            )
        messages = self.messages(tuple(turns))
        added = len(messages) - len(turns)  # the system prompt
        trained = [i for i, weight in enumerate(turn_weights) if weight > 0]
        ids, spans = self._assemble(messages, [i + added for i in trained], variables, finished=True)
        weights = [0.0] * len(ids)
        for i, (start, end) in zip(trained, spans, strict=True):
            weights[start:end] = [turn_weights[i]] * (end - start)
        return EncodedText(tuple(ids), tuple(weights))

    def encode_document(self, text: str) -> EncodedText:
        """Raw text with the tokenizer's own special tokens and one end token; all but the first token trained."""
        ids: list[int] = list(self._tokenizer(text, verbose=False)["input_ids"])
        if ids[-1:] != [self._tokenizer.eos_token_id]:
            ids.append(int(self._tokenizer.eos_token_id))
        if len(ids) < 2:
            raise RowError("`text` has no tokens")
        return EncodedText(tuple(ids), (0.0, *[1.0] * (len(ids) - 1)))

    def is_end(self, token_id: int) -> bool:
        """True for a token that can end an answer: one at which the engine stops, or the template's end of a turn."""
        return token_id in self._ends.ids

    def _assemble(
        self, messages: Sequence[Message], trained: Sequence[int], variables: str, *, finished: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids through the last trained turn, and [start, end) of every trained one."""
        ids: list[int] = []
        spans, closed = [], ""
        if any(self._ends.first(messages[turn].extra) for turn in trained):  # rendered, it would cut the answer
            raise RowError(
                "a field of the answer (as `tool_calls`) holds an end token, where sampling would have stopped"
            )
        for turn, reply in zip(trained, self._replies.find(messages, trained, variables), strict=True):
            opened = self._joiner.ids(reply.opening)
            if opened[: len(ids)] == ids:
                ids = opened
            else:  # an earlier answer was tokenised alone; the prompt of this one merges over its boundary
                ids = self._joiner.continued(ids, reply.opening[len(closed) :], "the turns before an answer")
            start = len(ids)
            if start == 0:
                raise RowError("the prompt has no tokens, so every token would count as the answer's")
            ids = self._joiner.continued(ids, reply.body, "the answer")
            if len(ids) == start:
                raise RowError("the answer has no tokens besides its end")
            if self._ends.ids & set(ids[start:]):
                raise RowError("the answer holds an end token in its text, where sampling would have stopped")
            if finished or turn != trained[-1]:
                ids = [*ids, reply.end_id]
            spans.append((start, len(ids)))
            closed = reply.closed
        return ids, spans

    def _plain_prompt(self, prompt: Side, variables: str) -> tuple[int, ...]:
        if variables:
            raise RowError(no_template("`tools` and other template fields need a chat template"))
        ids = list(self._tokenizer(_plain(prompt, "prompt"), verbose=False)["input_ids"])
        if ids and ids[-1] == self._tokenizer.eos_token_id:  # some tokenizers end every text; a prompt goes on
            ids.pop()
        if not ids:
            raise RowError("the prompt has no tokens")
        return tuple(ids)

    def _plain_answer(self, prompt: Side, answer: Side, finished: bool, variables: str) -> EncodedAnswer:
        """The prompt's own ids followed by the answer's, as sampling joins them."""
        opening = self._plain_prompt(prompt, variables)
        text = _plain(answer, "answer")
        end = self._ends.first(text)
        if end and not text[end[1] :].strip():  # the text brings its own end token
            text = text[: end[0]]
        ids = self._joiner.continued(opening, text, "the answer")
        if len(ids) == len(opening):
            raise RowError("the answer has no tokens besides its end")
        if self._ends.ids & set(ids[len(opening) :]):
            raise RowError("the answer holds an end token in its text, where sampling would have stopped")
        return EncodedAnswer((*ids, *([self._ends.eos_id] if finished else [])), len(opening))

    def _rendered_ids(self, text: str) -> list[int]:
        """A template writes its own special tokens; plain text gets the tokenizer's, unless it begins with them."""
        bos = self._tokenizer.bos_token
        if self.has_template or (bos and text.startswith(str(bos))):
            return self._joiner.ids(text)
        ids = list(self._tokenizer(text, verbose=False)["input_ids"])
        return ids[:-1] if ids[-1:] == [self._tokenizer.eos_token_id] and not text.endswith(self._eos) else ids


def _plain(side: Side, what: str) -> str:
    if isinstance(side, str):
        return side
    raise RowError(no_template(f"the {what} is a list of turns, which needs a chat template") + ", or give text")
