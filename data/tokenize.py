"""Text to token ids, once: the chat template over the whole conversation, and which tokens are the answer's.

What is sampled at run time is prompt ids followed by response ids up to and with the end token. `encode_answer` gives
exactly that form, so a reward model is trained on what it will be asked to score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2.exceptions import TemplateError
from raylign.conf.errors import ModelLoadError
from raylign.data.rows import RowError, Side
from raylign.data.types import Message
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """A prompt and its answer as one sequence."""

    token_ids: tuple[int, ...]
    prompt_tokens: int  # the answer is token_ids[prompt_tokens:], end token included

    @property
    def mask(self) -> list[bool]:
        """True for the answer's tokens."""
        return [i >= self.prompt_tokens for i in range(len(self.token_ids))]

    def without_first(self, cut: int) -> EncodedAnswer | None:
        """Without the prompt's first `cut` tokens; None when not even one prompt token would be left."""
        if cut >= self.prompt_tokens:
            return None
        return EncodedAnswer(self.token_ids[cut:], self.prompt_tokens - cut)


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One sequence of which some tokens are trained."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]  # of each token's loss; 0: not trained

    def without_first(self, cut: int) -> EncodedText | None:
        """Without the first `cut` tokens; None when that takes a trained one, or leaves nothing before the first."""
        if any(self.weights[: cut + 1]):
            return None
        return EncodedText(self.token_ids[cut:], self.weights[cut:])


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, without running code from it.

    Raises ModelLoadError for a folder without one, or one without character offsets (only fast tokenizers have them).
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ModelLoadError(f"{folder}: there is no such folder; give a Hugging Face model folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelLoadError(f"{folder}: the tokenizer cannot be loaded ({reason}).") from error
    if not tokenizer.is_fast:
        raise ModelLoadError(
            f"{folder}: needs a fast tokenizer (tokenizer.json); this one is {type(tokenizer).__name__}."
        )
    if tokenizer.eos_token_id is None:
        raise ModelLoadError(f"{folder}: the tokenizer names no eos_token, so no answer could ever end; set one.")
    return tokenizer


class Encoder:
    """Prompts and answers for one tokenizer. Rows that cannot be encoded raise RowError."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system_prompt: str = "") -> None:
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self._end_ids = frozenset(
            {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
            | {int(tokenizer.eos_token_id)}
        )

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

    def encode_prompt(self, prompt: Side) -> tuple[int, ...]:
        """Ids ready to be sampled from: with the template's opening of an answer, or plain text with its BOS."""
        if not self.has_template:
            return self._plain_prompt(prompt)
        return tuple(self._ids(self._render(self.messages(prompt), open_answer=True)))

    def encode_answer(self, prompt: Side, answer: Side, *, finished: bool = True) -> EncodedAnswer:
        """Prompt and answer, tokenised together, ending with the end token and nothing after it.

        An answer that was cut off (`finished=False`) ends with its last word: an end token there was never sampled.
        """
        encoded = self._encode_whole(prompt, answer)
        if finished:
            return encoded
        if len(encoded.token_ids) - encoded.prompt_tokens < 2:
            raise RowError("the answer has no tokens besides its end")
        return EncodedAnswer(encoded.token_ids[:-1], encoded.prompt_tokens)

    def encode_conversation(self, turns: Sequence[Message], turn_weights: Sequence[float]) -> EncodedText:
        """Whole conversation in one tokenisation; a turn with a weight is trained from its first word to its end token.

        Where a turn lies is told by rendering the conversation up to it, with and without it, and verified: a template
        that renders earlier turns otherwise once more follow is refused with RowError. What follows the last trained
        token is left out.
        """
        if not self.has_template:
            raise RowError(
                "`messages` needs a chat template and the model's tokenizer has none; use a chat model, or give "
                "`prompt` and `completion` as text"
            )
        messages = self.messages(tuple(turns))
        added = len(messages) - len(turns)  # the system prompt
        whole = self._render(messages, open_answer=False)
        spans = [
            (*self._span(messages, i + added, whole), weight) for i, weight in enumerate(turn_weights) if weight > 0
        ]
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids: list[int] = encoded["input_ids"]
        weights = [0.0] * len(ids)
        last_end = 0
        for start, end, weight in spans:
            inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if b > start and a < end and b > a]
            trained = self._through_end(ids, inside)
            if not trained or trained[0] == 0:
                raise RowError("an assistant turn has no tokens, or none before it that would predict its first")
            for i in trained:
                weights[i] = weight
            last_end = trained[-1] + 1
        ids, weights = ids[:last_end], weights[:last_end]
        if messages[-1].role == "assistant" and turn_weights[-1] > 0 and ids[-1] not in self._end_ids:
            ids, weights = [*ids, int(self._tokenizer.eos_token_id)], [*weights, turn_weights[-1]]
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
        """True for a token that can end an answer: the end of sequence, or a template's end of a turn."""
        return token_id in self._end_ids

    def _span(self, messages: Sequence[Message], turn: int, whole: str) -> tuple[int, int]:
        """Characters of `whole` that the assistant's `turn` wrote, what the template puts after it included."""
        opening = self._render(messages[:turn], open_answer=True)
        closed = self._render(messages[: turn + 1], open_answer=False)
        if not whole.startswith(closed) or not closed.startswith(opening):
            raise RowError(
                "the chat template rewrites earlier turns once more follow, so what of them was said cannot be told; "
                "use a template that keeps them, or rows of `prompt` and `completion` (the last answer only)"
            )
        return len(opening), len(closed)

    def _through_end(self, ids: Sequence[int], inside: Sequence[int]) -> Sequence[int]:
        """The tokens of a turn up to its end token, when only white space follows that; else all of them."""
        ends = [k for k, i in enumerate(inside) if ids[i] in self._end_ids]
        if ends and not self._tokenizer.decode([ids[i] for i in inside[ends[-1] + 1 :]]).strip():
            return inside[: ends[-1] + 1]
        return inside

    def _encode_whole(self, prompt: Side, answer: Side) -> EncodedAnswer:
        if not self.has_template:
            return self._plain_answer(prompt, answer)
        turns = self.messages(prompt)
        replies = (Message("assistant", answer),) if isinstance(answer, str) else answer
        opening = self._render(turns, open_answer=True)
        whole = self._render((*turns, *replies), open_answer=False)
        if not whole.startswith(opening):
            raise RowError(
                "the chat template does not render the prompt the same with an answer after it, so the answer's tokens "
                "cannot be told; use a template that keeps earlier turns as they were"
            )
        return self._mark(whole, len(opening))

    def _mark(self, whole: str, boundary: int) -> EncodedAnswer:
        """Ids of `whole`; the answer begins with the first token that holds text after character `boundary`."""
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids: list[int] = encoded["input_ids"]
        ends = [end for _, end in encoded["offset_mapping"]]
        prompt_tokens = next((i for i, end in enumerate(ends) if end > boundary), len(ids))
        return self._ended(ids, prompt_tokens)

    def _ended(self, ids: Sequence[int], prompt_tokens: int) -> EncodedAnswer:
        """With exactly one end token, last: what a template writes after it is never sampled."""
        answer = list(ids[prompt_tokens:])
        last_end = max((i for i, token in enumerate(answer) if token in self._end_ids), default=None)
        if last_end is not None and not self._tokenizer.decode(answer[last_end + 1 :]).strip():
            answer = answer[: last_end + 1]
        else:
            answer.append(int(self._tokenizer.eos_token_id))
        if len(answer) < 2:
            raise RowError("the answer has no tokens besides its end")
        if prompt_tokens == 0:
            raise RowError("the prompt has no tokens, so every token would count as the answer's")
        return EncodedAnswer((*ids[:prompt_tokens], *answer), prompt_tokens)

    def _plain_prompt(self, prompt: Side) -> tuple[int, ...]:
        ids = list(self._tokenizer(_plain(prompt, "prompt"), verbose=False)["input_ids"])
        if ids and ids[-1] == self._tokenizer.eos_token_id:  # some tokenizers end every text; a prompt goes on
            ids.pop()
        if not ids:
            raise RowError("the prompt has no tokens")
        return tuple(ids)

    def _plain_answer(self, prompt: Side, answer: Side) -> EncodedAnswer:
        """The prompt's own ids followed by the answer's, as sampling joins them."""
        opening = self._plain_prompt(prompt)
        ids = self._ids(_plain(answer, "answer"))
        return self._ended((*opening, *ids), len(opening))

    def _ids(self, text: str) -> list[int]:
        """A template writes its own special tokens, so none are added: BOS is never doubled."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _render(self, turns: Sequence[Message], *, open_answer: bool) -> str:
        conversation = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=open_answer
            )
        except (TemplateError, ValueError) as error:
            raise RowError(f"the chat template refuses the turns ({error})") from error
        return rendered


def _plain(side: Side, what: str) -> str:
    if isinstance(side, str):
        return side
    raise RowError(
        f"the {what} is a list of turns and the model's tokenizer has no chat template; use a chat model, or give text"
    )
