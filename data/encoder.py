"""Prompts, answers and conversations of one tokenizer as ids, in the form that sampling has them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from raylign.data.chat_template import no_template
from raylign.data.end_tokens import EndTokens
from raylign.data.row_fields import EarlierTurnDiffers, RowError
from raylign.data.rows import Side
from raylign.data.templates import ChatTemplate
from raylign.data.tokenize import EncodedAnswer, EncodedText
from raylign.data.types import Message
from transformers import PreTrainedTokenizerBase

_THOUGHT = re.compile(r"<(think|thinking|seed:think)>\s*$")
_CONTEXT = 8  # tokens before a text that decide how its first characters are read back
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
    "told; use a template that keeps earlier turns as they were"
)


@dataclass(frozen=True, slots=True)
class _Reply:
    """An assistant turn as text."""

    opening: str  # all before it, as it is sampled from
    body: str
    end_id: int
    closed: str  # opening, body and end token, as later turns see them


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
        added = sorted((t.content for t in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._special = frozenset(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)
        self._eos = str(tokenizer.eos_token)
        self._added = re.compile(f"({'|'.join(map(re.escape, added))})") if added else None

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
        ids = self._ids(self._template.render(turns, variables, open_answer=True))
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
        ids = self._continued(ids, text[len(opening) :], "the text") if ids else self._rendered_ids(text)
        ends = [i for i, token in enumerate(ids) if token in self._ends.ids]
        if ends and not self._decode(ids[ends[-1] + 1 :]).strip():
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

        Where a turn lies is told by rendering the conversation up to it, and verified. Raises EarlierTurnDiffers for a
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
        self._template.refuse_unused(messages, variables)
        whole = self._template.render(messages, variables, open_answer=False)
        ids: list[int] = []
        spans, closed = [], ""
        for turn in trained:
            reply = self._reply(messages, turn, whole, variables)
            if turn != len(messages) - 1:
                self._refuse_another_form(messages[: turn + 1], reply, variables)
            if not reply.opening.startswith(closed):
                raise EarlierTurnDiffers(_REWRITES)
            opened = self._ids(reply.opening)
            if opened[: len(ids)] == ids:
                ids = opened
            else:  # an earlier answer was tokenised alone; the prompt of this one merges over its boundary
                ids = self._continued(ids, reply.opening[len(closed) :], "the turns before an answer")
            start = len(ids)
            if start == 0:
                raise RowError("the prompt has no tokens, so every token would count as the answer's")
            ids = self._continued(ids, reply.body, "the answer")
            if len(ids) == start:
                raise RowError("the answer has no tokens besides its end")
            if self._ends.ids & set(ids[start:]):
                raise RowError("the answer holds an end token in its text, where sampling would have stopped")
            if finished or turn != trained[-1]:
                ids = [*ids, reply.end_id]
            spans.append((start, len(ids)))
            closed = reply.closed
        return ids, spans

    def _refuse_another_form(self, messages: Sequence[Message], reply: _Reply, variables: str) -> None:
        """Raises EarlierTurnDiffers when the last of `messages` was sampled otherwise than later turns see it."""
        whole = self._template.render(messages, variables, open_answer=False)
        sampled = self._reply(messages, len(messages) - 1, whole, variables)
        if sampled.body.strip() != reply.body.strip():  # each with an end token that the engine stops at
            raise EarlierTurnDiffers(_REWRITES)

    def _reply(self, messages: Sequence[Message], turn: int, whole: str, variables: str) -> _Reply:
        opening = self._template.render(messages[:turn], variables, open_answer=True)
        if turn == len(messages) - 1:
            if messages[turn].extra:
                return self._rendered(opening, whole)
            return self._last(opening, messages[turn].content, whole)
        if not whole.startswith(opening):
            raise EarlierTurnDiffers(_REWRITES)
        if messages[turn].extra:
            if self._template.drops(messages, turn, variables):
                raise EarlierTurnDiffers(_REWRITES)
            if self._ends.first(self._template.render(messages[: turn + 1], variables, open_answer=False)) is None:
                raise EarlierTurnDiffers(_NO_END)
            return self._rendered(opening, whole)
        return self._earlier(opening, messages[turn].content, whole)

    def _rendered(self, opening: str, alone: str) -> _Reply:
        """A turn with calls or reasoning: all that the template writes of it."""
        if not alone.startswith(opening):
            raise RowError(_NOT_THE_SAME)
        rest = alone[len(opening) :]
        end = self._ends.first(rest)
        if end is None:
            return _Reply(opening, rest.rstrip(), self._ends.eos_id, alone)
        return _Reply(opening, rest[: end[0]], end[2], opening + rest[: end[1]])

    def _earlier(self, opening: str, content: str, whole: str) -> _Reply:
        """An answer that more turns follow: as the template has it from then on."""
        rest = whole[len(opening) :]
        said = content if content in rest else content.strip()
        at = rest.find(said)
        if at < 0 or self._ends.first(rest[:at]):
            raise EarlierTurnDiffers(_REWRITES)
        end = self._ends.first(rest[at + len(said) :])
        if end is None or rest[at + len(said) : at + len(said) + end[0]].strip():
            raise EarlierTurnDiffers(_NO_END)
        body = rest[: at + len(said) + end[0]]
        return _Reply(opening, body, end[2], opening + rest[: at + len(said) + end[1]])

    def _last(self, opening: str, content: str, whole: str) -> _Reply:
        """The answer word for word, with what the template writes before it and the end token it writes after it."""
        tag = _THOUGHT.search(opening)
        if tag and content.startswith(f"<{tag[1]}>"):
            content = content.removeprefix(f"<{tag[1]}>").lstrip("\n")
        before = next((o for o in (opening, opening.rstrip()) if whole.startswith(o)), None)
        if before is None and not (tag and whole.startswith(opening[: tag.start()])):
            raise RowError(_NOT_THE_SAME)
        rest = whole[len(before) :] if before is not None else whole[len(opening[: tag.start()]) if tag else 0 :]
        said = content if content in rest else content.strip()
        at = rest.find(said)
        lead = rest[:at] if at >= 0 and before == opening else ""
        if tag and f"</{tag[1]}>" not in lead + content:
            raise RowError(
                f"the chat template opens every answer with a thought (<{tag[1]}>) and this answer does not close it; "
                f"give the reasoning up to </{tag[1]}>, or chat_template_kwargs that turn thinking off"
            )
        after = rest[at + len(said) :] if at >= 0 else rest
        end = self._ends.first(after)
        tail = after[: end[0]] if end and at >= 0 and not after[: end[0]].strip() else ""
        if said != content and lead.isspace():  # the template strips: the answer's own white space is kept instead
            tail = ""
        end_id = end[2] if end else self._ends.eos_id
        return _Reply(opening, lead + content + tail, end_id, whole)

    def _continued(self, ids: Sequence[int], text: str, what: str) -> list[int]:
        """`ids` and those of `text`, read back as exactly `text`: some tokenizers put a space before every text."""
        whole = self._read_back(ids, text)
        if whole is not None:
            return whole
        parts = self._added.split(text) if self._added else []
        made: list[int] | None = list(ids) if len(parts) > 1 else None
        for part in filter(None, parts):  # between special tokens: some tokenizers put a space after each
            if made is not None:
                made = self._read_back(made, part)
        if made is None:
            raise RowError(f"the tokenizer cannot write {what} so that it reads back the same (unknown characters?)")
        return made

    def _read_back(self, ids: Sequence[int], text: str) -> list[int] | None:
        """`ids` and those of `text` if they decode to it, else None."""
        if not text:
            return list(ids)
        context = list(ids[-_CONTEXT:])
        before = self._decode(context)
        wanted = {before + text, before + unicodedata.normalize("NFC", text)}
        for anchor in ("", "\n", ":", "a"):
            anchored, alone = self._ids(anchor + text), self._ids(anchor) if anchor else []
            added = anchored[len(alone) :]
            if anchored[: len(alone)] == alone and self._decode([*context, *added]) in wanted:
                return [*ids, *added]
        return None

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

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
        ids = self._continued(opening, text, "the answer")
        if len(ids) == len(opening):
            raise RowError("the answer has no tokens besides its end")
        if self._ends.ids & set(ids[len(opening) :]):
            raise RowError("the answer holds an end token in its text, where sampling would have stopped")
        return EncodedAnswer((*ids, *([self._ends.eos_id] if finished else [])), len(opening))

    def _rendered_ids(self, text: str) -> list[int]:
        """A template writes its own special tokens; plain text gets the tokenizer's, unless it begins with them."""
        bos = self._tokenizer.bos_token
        if self.has_template or (bos and text.startswith(str(bos))):
            return self._ids(text)
        ids = list(self._tokenizer(text, verbose=False)["input_ids"])
        return ids[:-1] if ids[-1:] == [self._tokenizer.eos_token_id] and not text.endswith(self._eos) else ids

    def _ids(self, text: str) -> list[int]:
        """A template writes its own special tokens, so none are added: BOS is never doubled."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _plain(side: Side, what: str) -> str:
    if isinstance(side, str):
        return side
    raise RowError(no_template(f"the {what} is a list of turns, which needs a chat template") + ", or give text")
