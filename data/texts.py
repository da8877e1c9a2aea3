"""Texts to be learned: conversations and completions, or raw documents -> the TextBatch they are trained in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from raylign.conf.errors import DataError
from raylign.conf.schema import DataConfig
from raylign.data.encoder import Encoder
from raylign.data.loading import RawRow, item_text
from raylign.data.quarantine import LoadReport
from raylign.data.row_batches import TextBatch
from raylign.data.row_fields import EarlierTurnDiffers, RowError
from raylign.data.row_set import RowBuilder, read_row_set
from raylign.data.rows import CompletionRow, ConversationRow, completion_or_conversation, document_row
from raylign.data.tokenize import EncodedText
from raylign.data.types import Message, TokenBatch
from torch import Tensor

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TextSet:
    """Texts in file order; a data.row_kinds.TrainRows."""

    texts: tuple[EncodedText, ...]
    digest: str
    report: LoadReport

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows by kind."""
        return {"rows": len(self.texts)}

    def batch(self, rows: Sequence[int]) -> TextBatch:
        """The given texts, end to end."""
        texts = [self.texts[row] for row in rows]
        return TextBatch(
            TokenBatch.from_sequences([t.token_ids for t in texts], [[w > 0 for w in t.weights] for t in texts]),
            torch.tensor([w for t in texts for w in t.weights], dtype=torch.float32),
        )

    def token_ids(self) -> Iterator[tuple[int, ...]]:
        """Those of `sequences`, one after the other."""
        return (text.token_ids for text in self.texts)

    def sequences(self) -> list[tuple[tuple[int, ...], list[bool]]]:
        """Token ids and trained tokens of every text."""
        return [(text.token_ids, [w > 0 for w in text.weights]) for text in self.texts]

    def with_reference(self, logps: Tensor) -> TextSet:
        """Texts are learned without a reference."""
        raise TypeError("texts have no use for a reference")


def load_conversations(
    name: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quarantine: Path | None = None,
    today: date | None = None,
) -> TextSet:
    """Every usable conversation or completion of `name`.

    Raises DataError for a set that is empty, unreadable, too bad or too long.
    """
    builder = _ConversationBuilder(Encoder(tokenizer, system_prompt=config.system_prompt, today=today), config)
    return _read(name, config, builder, quarantine)


def load_documents(
    name: str, config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, quarantine: Path | None = None
) -> TextSet:
    """Every usable document of `name`. Raises DataError as `load_conversations`."""
    return _read(name, config, _DocumentBuilder(Encoder(tokenizer), config), quarantine)


def _read(name: str, config: DataConfig, builder: RowBuilder[EncodedText], quarantine: Path | None) -> TextSet:
    read = read_row_set(name, config, builder, quarantine)
    if not any(any(text.weights) for text in read.items):
        raise DataError(f"data {name}: no token of its {len(read.items)} rows would be trained.")
    return TextSet(read.items, read.digest, read.report)


class _ConversationBuilder:
    """A RowBuilder of conversations and completions."""

    max_tokens_key = "data.max_length"

    def __init__(self, encoder: Encoder, config: DataConfig) -> None:
        self._encoder = encoder
        self.max_tokens = config.max_length

    def build(self, row: RawRow) -> tuple[EncodedText, ...]:
        """One text, or one for each trained turn where a turn's form depends on what follows it. Raises RowError."""
        parsed = completion_or_conversation(row.columns)
        try:
            return (self._whole(parsed),)
        except EarlierTurnDiffers:
            return self._one_by_one(parsed)

    def _whole(self, parsed: CompletionRow | ConversationRow) -> EncodedText:
        if isinstance(parsed, CompletionRow):
            answer = self._encoder.encode_answer(
                parsed.prompt, parsed.completion, finished=parsed.finished, variables=parsed.variables
            )
            return EncodedText(answer.token_ids, tuple(parsed.weight if trained else 0.0 for trained in answer.mask))
        text = self._encoder.encode_conversation(parsed.turns, parsed.turn_weights, parsed.variables)
        return EncodedText(text.token_ids, tuple(weight * parsed.weight for weight in text.weights))

    def _one_by_one(self, parsed: CompletionRow | ConversationRow) -> tuple[EncodedText, ...]:
        """Each trained turn as the last of its conversation, which is how it is sampled."""
        turns, weights, finished = _turns_and_weights(parsed, self._encoder)
        trained = [i for i, weight in enumerate(weights) if weight]
        texts = []
        for i in trained:
            done = finished or i != trained[-1]
            answer = self._encoder.encode_answer(turns[:i], turns[i : i + 1], finished=done, variables=parsed.variables)
            weight = parsed.weight * weights[i]
            texts.append(EncodedText(answer.token_ids, tuple(weight if mask else 0.0 for mask in answer.mask)))
        return tuple(texts)

    def num_tokens(self, item: EncodedText) -> int:
        """All tokens."""
        return len(item.token_ids)

    def truncate_left(self, item: EncodedText) -> EncodedText | None:
        """The end stays; None when that would cut into what is trained."""
        return item.without_first(len(item.token_ids) - self.max_tokens)

    def fingerprint(self, item: EncodedText) -> str:
        """Everything of it."""
        return item_text(item)


def _turns_and_weights(
    parsed: CompletionRow | ConversationRow, encoder: Encoder
) -> tuple[tuple[Message, ...], tuple[float, ...], bool]:
    """All turns, the weight of each, and whether the last was finished. Raises RowError without a turn before them."""
    if isinstance(parsed, ConversationRow):
        turns, weights, finished = parsed.turns, parsed.turn_weights, True
    else:
        asked = encoder.messages(parsed.prompt)
        replies = (Message("assistant", c),) if isinstance(c := parsed.completion, str) else c
        turns = (*asked, *replies)
        weights = (*(0.0 for _ in asked), *(float(reply.role == "assistant") for reply in replies))
        finished = parsed.finished
    if weights[0]:
        raise RowError("the conversation begins with a trained answer, and there is no prompt to sample it from")
    return turns, weights, finished


class _DocumentBuilder:
    """A RowBuilder of raw text."""

    max_tokens_key = "data.max_length"

    def __init__(self, encoder: Encoder, config: DataConfig) -> None:
        self._encoder = encoder
        self.max_tokens = config.max_length

    def build(self, row: RawRow) -> tuple[EncodedText]:
        """Raises RowError."""
        parsed = document_row(row.columns)
        text = self._encoder.encode_document(parsed.text)
        return (EncodedText(text.token_ids, tuple(weight * parsed.weight for weight in text.weights)),)

    def num_tokens(self, item: EncodedText) -> int:
        """All tokens."""
        return len(item.token_ids)

    def truncate_left(self, item: EncodedText) -> EncodedText:
        """The end stays; its first token is then read only."""
        ids, weights = item.token_ids[-self.max_tokens :], item.weights[-self.max_tokens :]
        return EncodedText(ids, (0.0, *weights[1:]))

    def fingerprint(self, item: EncodedText) -> str:
        """Everything of it."""
        return item_text(item)
