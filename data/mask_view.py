"""What of a row is trained, for eyes; and what is odd about the masks of a set, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from raylign.data.encoder import Encoder
from raylign.data.row_fields import RowError
from raylign.data.row_kinds import TrainRows
from raylign.data.types import Message

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase

LOOKED_AT = 500
"""Rows whose masks are checked: a template's fault shows in the first ones."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens that are all trained, or all only read."""

    text: str
    trained: bool
    num_tokens: int


Sequence_ = tuple[list[int], list[bool]]


def first_row(rows: TrainRows, tokenizer: PreTrainedTokenizerBase) -> list[list[Run]]:
    """The first row's sequences, exactly as the learner gets them, cut where training begins and ends."""
    return [_runs(ids, mask, tokenizer) for ids, mask in _sequences(rows, 1)]


def mask_warnings(
    rows: TrainRows, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, *, generates: bool = True
) -> list[str]:
    """What is odd about the masks of the first rows, each with its count and the number of a row that shows it.

    `generates`: the model in training is to write text; where one only scores it, how an answer ends is not learned.
    """
    sequences = list(_sequences(rows, LOOKED_AT))
    bos = tokenizer.bos_token_id
    checks = {
        "end with a trained token that is no end token, so stopping there is not learned": [
            not encoder.is_end(ids[_last(mask)]) for ids, mask in sequences
        ],
        "hold an answer whose end token follows it but is not trained": [
            any(
                mask[i] and not mask[i + 1] and not encoder.is_end(ids[i]) and encoder.is_end(ids[i + 1]) for i in inner
            )
            for ids, mask, inner in ((ids, mask, range(len(ids) - 1)) for ids, mask in sequences)
        ],
        "begin with two BOS tokens": [bos is not None and ids[:2] == [bos, bos] for ids, _ in sequences],
        "train two end tokens in a row": [
            any(
                mask[i] and mask[i + 1] and encoder.is_end(ids[i]) and ids[i] == ids[i + 1] for i in range(len(ids) - 1)
            )
            for ids, mask in sequences
        ],
    }
    if not generates:
        checks = {what: found for what, found in checks.items() if "BOS" in what}
    warnings = [
        f"masks: {sum(found)} of {len(sequences)} sequences {what} (first: sequence {found.index(True) + 1})."
        for what, found in checks.items()
        if any(found)
    ]
    return warnings + rewriting_warnings(encoder)


def rewriting_warnings(encoder: Encoder) -> list[str]:
    """A sentence when the chat template renders an earlier answer otherwise once more turns follow."""
    if not encoder.has_template:
        return []
    question, answer = Message("user", "a"), Message("assistant", "<think>\nb\n</think>\n\nc")
    try:
        encoder.encode_conversation((question, answer, question, answer), (0.0, 1.0, 0.0, 1.0))
    except RowError as error:
        return [
            f"masks: {error}. For algorithm=sft each answer of a conversation becomes a sequence of its own, as it is "
            "sampled; elsewhere rows whose answer has several assistant turns are quarantined."
        ]
    return []


def _last(mask: Sequence[bool]) -> int:
    return max((i for i, trained in enumerate(mask) if trained), default=len(mask) - 1)


def _runs(ids: Sequence[int], mask: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> list[Run]:
    runs = []
    for trained, part in groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1]):
        tokens = [token for token, _ in part]
        runs.append(Run(tokenizer.decode(tokens), trained, len(tokens)))
    return runs


def _sequences(rows: TrainRows, limit: int) -> Iterator[Sequence_]:
    """Ids and mask of the first rows' sequences, from the batch the learner would get."""
    tokens = rows.batch(range(min(limit, len(rows)))).tokens
    for start, end in pairwise(tokens.cu_seqlens.tolist()):
        yield tokens.input_ids[start:end].tolist(), tokens.response_mask[start:end].tolist()
