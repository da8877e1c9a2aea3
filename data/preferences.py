"""Preference sets: rows -> tokenised pairs, and pairs -> the PairBatch that reward models and DPO are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from raylign.conf.schema import DataConfig
from raylign.data.encoder import Encoder
from raylign.data.loading import RawRow, item_text
from raylign.data.quarantine import LoadReport
from raylign.data.row_fields import RowError
from raylign.data.row_set import read_row_set
from raylign.data.rows import pair_row
from raylign.data.tokenize import EncodedAnswer
from raylign.data.types import PairBatch, TokenBatch
from torch import Tensor

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PairExample:
    """One preference, tokenised."""

    chosen: EncodedAnswer
    rejected: EncodedAnswer
    margin: float
    weight: float


@dataclass(frozen=True, slots=True)
class PairSet:
    """Preferences in file order; the sampler shuffles. A data.row_kinds.TrainRows."""

    pairs: tuple[PairExample, ...]
    digest: str  # a data position is only valid for the same digest
    report: LoadReport
    train_prompts: bool = False  # the chosen sides' prompts are trained too
    ref_logps: Tensor | None = None  # [2P]: of chosen and rejected, alternating

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows by kind."""
        return {"pairs": len(self.pairs)}

    def batch(self, rows: Sequence[int]) -> PairBatch:
        """The given pairs."""
        made = pair_batch([self.pairs[row] for row in rows], train_prompts=self.train_prompts)
        if self.ref_logps is None:
            return made
        index = torch.tensor([side for row in rows for side in (2 * row, 2 * row + 1)], dtype=torch.int64)
        return replace(made, ref_logps=self.ref_logps[index])

    def token_ids(self) -> Iterator[tuple[int, ...]]:
        """Those of `sequences`, one after the other."""
        return (side.token_ids for pair in self.pairs for side in (pair.chosen, pair.rejected))

    def sequences(self) -> list[tuple[tuple[int, ...], list[bool]]]:
        """Token ids and answer tokens: chosen and rejected of every row, alternating."""
        return [(side.token_ids, side.mask) for pair in self.pairs for side in (pair.chosen, pair.rejected)]

    def with_reference(self, logps: Tensor) -> PairSet:
        """With the reference's log-prob of each of `sequences`."""
        return replace(self, ref_logps=logps)


def load_pairs(
    name: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quarantine: Path | None = None,
    train_prompts: bool = False,
    today: date | None = None,
) -> PairSet:
    """Every usable preference of `name` (`config.train` or `config.eval`).

    `quarantine`: the file for rows that cannot be used. Raises DataError for a set that is empty, unreadable or too
    bad, or with a side over `config.max_length` under `overlong=error`.
    """
    builder = _PairBuilder(Encoder(tokenizer, system_prompt=config.system_prompt, today=today), config)
    read = read_row_set(name, config, builder, quarantine)
    return PairSet(read.items, read.digest, read.report, train_prompts)


def pair_batch(pairs: Sequence[PairExample], *, train_prompts: bool = False) -> PairBatch:
    """P pairs as 2P sequences, chosen and rejected alternating; the answers' tokens are the masked ones.

    `train_prompts`: the chosen sides' prompts are masked too, but for the first token, and `answers` tells them apart.
    """
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    masks = [side.mask for side in sides]
    answers = None
    if train_prompts:
        answers = torch.tensor([trained for mask in masks for trained in mask], dtype=torch.bool)
        masks[::2] = [[i > 0 for i in range(len(mask))] for mask in masks[::2]]
    return PairBatch(
        tokens=TokenBatch.from_sequences([side.token_ids for side in sides], masks),
        margin=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
        weight=torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
        answers=answers,
    )


class _PairBuilder:
    """A RowBuilder of preferences."""

    max_tokens_key = "data.max_length"

    def __init__(self, encoder: Encoder, config: DataConfig) -> None:
        self._encoder = encoder
        self.max_tokens = config.max_length

    def build(self, row: RawRow) -> tuple[PairExample]:
        """Raises RowError, also for answers that differ in text but not in tokens."""
        parsed = pair_row(row.columns)
        chosen = self._encoder.encode_answer(
            parsed.prompt, parsed.chosen, finished=parsed.chosen_finished, variables=parsed.variables
        )
        rejected = self._encoder.encode_answer(
            parsed.prompt, parsed.rejected, finished=parsed.rejected_finished, variables=parsed.variables
        )
        if chosen.token_ids == rejected.token_ids:
            raise RowError("`chosen` and `rejected` are the same tokens")
        return (PairExample(chosen, rejected, parsed.margin, parsed.weight),)

    def num_tokens(self, item: PairExample) -> int:
        """Tokens of the longer side."""
        return max(len(item.chosen.token_ids), len(item.rejected.token_ids))

    def truncate_left(self, item: PairExample) -> PairExample | None:
        """The same cut on both sides, so that both answer the same prompt; None when an answer alone is too long."""
        cut = self.num_tokens(item) - self.max_tokens
        chosen, rejected = item.chosen.without_first(cut), item.rejected.without_first(cut)
        if chosen is None or rejected is None:
            return None
        return PairExample(chosen, rejected, item.margin, item.weight)

    def fingerprint(self, item: PairExample) -> str:
        """Everything of it."""
        return item_text(item)
