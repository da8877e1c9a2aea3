"""A model with one number a state: the critic and the reward model share it.

On disk it is what `AutoModelForSequenceClassification(num_labels=1)` reads and writes: `score.weight`, no bias.
"""

from __future__ import annotations

import torch
from raylign.data.types import TokenBatch, ValueEstimates
from raylign.trainer.functional.packing import pack
from raylign.trainer.models.packed_attention import packed_states
from raylign.trainer.models.sequence_split import SequenceSplit
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class ScalarHead(nn.Module):
    """Takes the place of `score`, computing in float32 whatever the model's precision: bfloat16 has 3 digits."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight  # [1, H]

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden `[N, H]` -> scalar `[N]` float32."""
        return F.linear(hidden.float(), self.weight.float())[:, 0]


class ScalarModel(nn.Module):
    """Wraps a transformers sequence classifier with one label; `hf` keeps its parameter names."""

    def __init__(self, hf: PreTrainedModel) -> None:
        super().__init__()
        hf.score = ScalarHead(hf.score.weight)
        self.hf = hf
        self.split: SequenceSplit | None = None  # of a batch's tokens over ranks that are all given it

    def forward(self, tokens: TokenBatch) -> Tensor:
        """The scalar of the state after each token, `[N]` float32."""
        packing = pack(tokens)
        scores = self.hf.score(packed_states(self.hf.base_model, tokens, packing, self.split))
        if self.split is not None:
            scores = self.split.joined(scores, packing.tokens.numel())
        return scores.index_select(0, packing.rows)

    def last_hidden(self, tokens: TokenBatch) -> Tensor:
        """The state after each sequence's last token, which the head reads: `[S, H]` float32."""
        packing = pack(tokens)
        last = packing.rows[tokens.cu_seqlens[1:].long() - 1]
        return packed_states(self.hf.base_model, tokens, packing).index_select(0, last).float()


def init_score(weight: Tensor, *, seed: int) -> None:
    """A new head in place: N(0, 1 / (hidden + 1)) (Stiennon et al. 2020, arXiv:2009.01325)."""
    drawn = torch.empty(weight.shape, dtype=torch.float32)
    nn.init.normal_(drawn, std=(weight.shape[1] + 1) ** -0.5, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weight.copy_(drawn)


def values_from_states(states: Tensor, tokens: TokenBatch) -> ValueEstimates:
    """The critic's alignment: token t was chosen in the state after token t - 1.

    states `[N]` -> values `[N]` (zero off-mask) and bootstrap `[S]`, the state after each sequence's last token.
    Keeps the gradient. The first token of a sequence is never under the mask (trainer/models/causal_lm.py), so the
    shift crosses no boundary that matters.
    """
    before = F.pad(states[:-1], (1, 0))
    return ValueEstimates(values=before * tokens.response_mask, bootstrap=last_states(states, tokens))


def last_states(states: Tensor, tokens: TokenBatch) -> Tensor:
    """The scalar after each sequence's last token, `[S]`: a reward model's score."""
    return states[tokens.cu_seqlens[1:].long() - 1]
