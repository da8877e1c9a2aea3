"""Preference sets: rows -> tokenised pairs, and pairs -> the PairBatch a reward model is trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from conf.schema import DataConfig
from data.loading import RawRow
from data.quarantine import LoadReport
from data.row_set import read_row_set
from data.rows import RowError, pair_row
from data.tokenize import EncodedAnswer, Encoder
from data.types import PairBatch, TokenBatch


@dataclass(frozen=True, slots=True)
class PairExample:
    """One preference, tokenised."""

    chosen: EncodedAnswer
    rejected: EncodedAnswer
    margin: float
    weight: float


@dataclass(frozen=True, slots=True)
class PairSet:
    """Preferences in file order; the sampler shuffles."""

    pairs: tuple[PairExample, ...]
    digest: str  # a data position is only valid for the same digest
    report: LoadReport


def load_pairs(
    name: str, config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, quarantine: Path | None = None
) -> PairSet:
    """Every usable preference of `name` (`config.train` or `config.eval`).

    `quarantine`: the file for rows that cannot be used. Raises DataError for a set that is empty, unreadable or too
    bad, or with a side over `config.max_length` under `overlong=error`.
    """
    builder = _PairBuilder(Encoder(tokenizer, system_prompt=config.system_prompt), config)
    read = read_row_set(name, config, builder, quarantine)
    return PairSet(read.items, read.digest, read.report)


def pair_batch(pairs: Sequence[PairExample]) -> PairBatch:
    """P pairs as 2P sequences, chosen and rejected alternating; the answers' tokens are the masked ones."""
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    return PairBatch(
        tokens=TokenBatch.from_sequences([side.token_ids for side in sides], [side.mask for side in sides]),
        margin=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
        weight=torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
    )


class _PairBuilder:
    """A RowBuilder of preferences."""

    max_tokens_key = "data.max_length"

    def __init__(self, encoder: Encoder, config: DataConfig) -> None:
        self._encoder = encoder
        self.max_tokens = config.max_length

    def build(self, row: RawRow) -> PairExample:
        """Raises RowError, also for answers that differ in text but not in tokens."""
        parsed = pair_row(row.columns)
        chosen = self._encoder.encode_answer(parsed.prompt, parsed.chosen, finished=parsed.chosen_finished)
        rejected = self._encoder.encode_answer(parsed.prompt, parsed.rejected, finished=parsed.rejected_finished)
        if chosen.token_ids == rejected.token_ids:
            raise RowError("`chosen` and `rejected` are the same tokens")
        return PairExample(chosen, rejected, parsed.margin, parsed.weight)

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
        return json.dumps(asdict(item))
