"""One way in for every kind of offline rows: what a training set can do, and its loader by kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from raylign.conf.schema import DataConfig
from raylign.data.judged import load_judged
from raylign.data.preferences import load_pairs
from raylign.data.quarantine import LoadReport
from raylign.data.texts import load_conversations, load_documents
from raylign.data.types import RowKind
from torch import Tensor

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase


class TrainRows(Protocol):
    """A tokenised training set."""

    @property
    def digest(self) -> str:
        """Identity of its rows: a data position and cached log-probs are only valid for the same."""
        ...

    @property
    def report(self) -> LoadReport: ...
    @property
    def counts(self) -> Mapping[str, int]:
        """Rows by kind, for the algorithm's `data_warnings`."""
        ...

    def __len__(self) -> int: ...
    def batch(self, rows: Sequence[int]) -> Any:
        """The given rows as a TrainBatch."""
        ...

    def token_ids(self) -> Iterator[tuple[int, ...]]:
        """Of every sequence of every row, in any order."""
        ...

    def sequences(self) -> list[tuple[tuple[int, ...], list[bool]]]:
        """Token ids and answer tokens of every sequence of every row, in row order."""
        ...

    def with_reference(self, logps: Tensor) -> Self:
        """With the reference's summed log-prob of each of `sequences`."""
        ...


def load_rows(
    kind: RowKind,
    name: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quarantine: Path | None = None,
    train_prompts: bool = False,
    today: date | None = None,
) -> TrainRows:
    """Every usable row of `name`. `train_prompts`: of pairs. Raises DataError naming what is wrong with the set."""
    match kind:
        case RowKind.CONVERSATIONS:
            return load_conversations(name, config, tokenizer, quarantine=quarantine, today=today)
        case RowKind.DOCUMENTS:
            return load_documents(name, config, tokenizer, quarantine=quarantine)
        case RowKind.PAIRS:
            return load_pairs(name, config, tokenizer, quarantine=quarantine, train_prompts=train_prompts, today=today)
        case RowKind.JUDGED:
            return load_judged(name, config, tokenizer, quarantine=quarantine, today=today)
