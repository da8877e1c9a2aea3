"""The batches of offline training besides pairs (data/types.py): weighted text, and judged answers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from raylign.data.types import TokenBatch
from raylign.data.work import UnitWork, work_of
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TextBatch:
    """S texts. A token's loss counts `weights` times; the mean is over trained tokens, whatever their weight."""

    tokens: TokenBatch
    weights: Tensor  # [N] float32, above 0 exactly where `response_mask`

    def units(self) -> list[UnitWork]:
        """The cost of each indivisible unit (here: a text)."""
        return [work_of([text]) for text in self.tokens.sequences()]

    def select(self, units: Sequence[int]) -> TextBatch:
        """A new batch of the given texts."""
        return TextBatch(self.tokens.select(units), self.weights[self.tokens.token_index(units)])

    def filler(self) -> TextBatch:
        """The shortest text with nothing to train."""
        text = self.select([int(self.tokens.lengths.argmin())])
        return TextBatch(_untrained(text.tokens), torch.zeros_like(text.weights))


@dataclass(frozen=True, slots=True)
class JudgedBatch:
    """S answers with a verdict, and for each the same prompt with another row's answer, which measures the KL.

    Both parts are `[S]` sequences in the same order; the second is never trained.
    """

    tokens: TokenBatch
    mismatched: TokenBatch
    desirable: Tensor  # [S] bool
    weight: Tensor  # [S] float32, 0 for a filler
    ref_logps: Tensor | None = None  # [S] float64: each answer's log-prob under the reference
    ref_mismatched_logps: Tensor | None = None  # [S]

    def units(self) -> list[UnitWork]:
        """The cost of each indivisible unit: the two sequences are never in one pass, so the longer one counts."""
        both = zip(self.tokens.sequences(), self.mismatched.sequences(), strict=True)
        works = [(work_of([answer]), work_of([mismatched])) for answer, mismatched in both]
        return [one._replace(own=max(one.tokens, other.tokens) - one.shared) for one, other in works]

    def select(self, units: Sequence[int]) -> JudgedBatch:
        """A new batch of the given answers."""
        index = torch.tensor(list(units), dtype=torch.int64)
        return JudgedBatch(
            self.tokens.select(units),
            self.mismatched.select(units),
            self.desirable[index],
            self.weight[index],
            None if self.ref_logps is None else self.ref_logps[index],
            None if self.ref_mismatched_logps is None else self.ref_mismatched_logps[index],
        )

    def filler(self) -> JudgedBatch:
        """The shortest answer with weight 0 and nothing to train or to measure."""
        lengths = torch.maximum(self.tokens.lengths, self.mismatched.lengths)
        one = self.select([int(lengths.argmin())])
        return replace(
            one,
            tokens=_untrained(one.tokens),
            mismatched=_untrained(one.mismatched),
            weight=torch.zeros_like(one.weight),
        )


def _untrained(tokens: TokenBatch) -> TokenBatch:
    return replace(tokens, response_mask=torch.zeros_like(tokens.response_mask))
