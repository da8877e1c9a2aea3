"""Judged answers: rows -> tokenised answers, each with another row's answer to measure the KL on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from raylign.conf.errors import DataError
from raylign.conf.schema import DataConfig
from raylign.data.encoder import Encoder
from raylign.data.loading import RawRow, item_text
from raylign.data.quarantine import LoadReport
from raylign.data.row_batches import JudgedBatch
from raylign.data.row_set import read_row_set
from raylign.data.rows import judged_row
from raylign.data.tokenize import EncodedAnswer
from raylign.data.types import TokenBatch
from torch import Tensor

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class JudgedExample:
    """One answer with its verdict, tokenised."""

    answer: EncodedAnswer
    desirable: bool
    weight: float


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """Judged answers in file order; a data.row_kinds.TrainRows."""

    answers: tuple[JudgedExample, ...]
    mismatched: tuple[EncodedAnswer, ...]  # row i's prompt with another row's answer
    digest: str
    report: LoadReport
    ref_logps: Tensor | None = None  # [2S]: of answer and mismatched answer, alternating

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def num_desirable(self) -> int:
        """Rows whose label is true."""
        return sum(row.desirable for row in self.answers)

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows by kind."""
        return {"desirable": self.num_desirable, "undesirable": len(self) - self.num_desirable}

    def batch(self, rows: Sequence[int]) -> JudgedBatch:
        """The given answers."""
        answers, others = [self.answers[row] for row in rows], [self.mismatched[row] for row in rows]
        index = torch.tensor(list(rows), dtype=torch.int64)
        return JudgedBatch(
            _tokens([row.answer for row in answers]),
            _tokens(others),
            torch.tensor([row.desirable for row in answers]),
            torch.tensor([row.weight for row in answers], dtype=torch.float32),
            None if self.ref_logps is None else self.ref_logps[2 * index],
            None if self.ref_logps is None else self.ref_logps[2 * index + 1],
        )

    def token_ids(self) -> Iterator[tuple[int, ...]]:
        """Those of `sequences`, in another order."""
        return (side.token_ids for side in (*(row.answer for row in self.answers), *self.mismatched))

    def sequences(self) -> list[tuple[tuple[int, ...], list[bool]]]:
        """Token ids and answer tokens: answer and mismatched answer of every row, alternating."""
        both = zip(self.answers, self.mismatched, strict=True)
        return [(side.token_ids, side.mask) for row, other in both for side in (row.answer, other)]

    def with_reference(self, logps: Tensor) -> JudgedSet:
        """With the reference's log-prob of each of `sequences`."""
        return replace(self, ref_logps=logps)


def load_judged(
    name: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quarantine: Path | None = None,
    today: date | None = None,
) -> JudgedSet:
    """Every usable judged answer of `name`.

    Raises DataError for a set that is empty, unreadable, too bad or too long, or has labels of one kind only.
    """
    builder = _JudgedBuilder(Encoder(tokenizer, system_prompt=config.system_prompt, today=today), config)
    read = read_row_set(name, config, builder, quarantine)
    found = JudgedSet(
        read.items, mismatches([r.answer for r in read.items], config.max_length), read.digest, read.report
    )
    if found.num_desirable in (0, len(found)):
        label = "true" if found.num_desirable else "false"
        raise DataError(
            f"data {name}: `label` is {label} in all of its {len(found)} rows; learning from verdicts needs both "
            "kinds. Answers that are all good are for algorithm=sft."
        )
    return found


def mismatches(answers: Sequence[EncodedAnswer], max_tokens: int) -> tuple[EncodedAnswer, ...]:
    """Each prompt with the answer of the next row that asks something else (of the next row when none does).

    Fixed by the rows alone, so that the reference's log-probs of it can be kept. Cut at its end to `max_tokens`.
    """
    prompts = [answer.token_ids[: answer.prompt_tokens] for answer in answers]
    size, next_other = len(answers), [0] * len(answers)
    for row in range(2 * size - 1, -1, -1):  # twice around, from the end: the neighbour's own mismatch is known by then
        i, j = row % size, (row + 1) % size
        next_other[i] = j if prompts[j] != prompts[i] else next_other[j]
    if len(set(prompts)) == 1:
        next_other = [(row + 1) % size for row in range(size)]
    made = []
    for prompt, other in zip(prompts, next_other, strict=True):
        answer = answers[other].token_ids[answers[other].prompt_tokens :]
        made.append(EncodedAnswer((*prompt, *answer)[:max_tokens], len(prompt), answers[other].others))
    return tuple(made)


def _tokens(answers: Sequence[EncodedAnswer]) -> TokenBatch:
    return TokenBatch.from_sequences([a.token_ids for a in answers], [a.mask for a in answers])


class _JudgedBuilder:
    """A RowBuilder of judged answers."""

    max_tokens_key = "data.max_length"

    def __init__(self, encoder: Encoder, config: DataConfig) -> None:
        self._encoder = encoder
        self.max_tokens = config.max_length

    def build(self, row: RawRow) -> tuple[JudgedExample]:
        """Raises RowError."""
        parsed = judged_row(row.columns)
        answer = self._encoder.encode_answer(
            parsed.prompt, parsed.completion, finished=parsed.finished, variables=parsed.variables
        )
        return (JudgedExample(answer, parsed.desirable, parsed.weight),)

    def num_tokens(self, item: JudgedExample) -> int:
        """Prompt and answer."""
        return len(item.answer.token_ids)

    def truncate_left(self, item: JudgedExample) -> JudgedExample | None:
        """The answer stays; None when it alone is too long."""
        answer = item.answer.without_first(self.num_tokens(item) - self.max_tokens)
        return None if answer is None else replace(item, answer=answer)

    def fingerprint(self, item: JudgedExample) -> str:
        """Everything of it."""
        return item_text(item)
