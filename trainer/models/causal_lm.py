"""A causal language model as the learner sees it: packed tokens in, one log-prob and entropy a response token out.

Only hidden states that predict a response token reach the head, and the head never makes a [tokens x vocabulary]
tensor (trainer/functional/logprobs.py).
"""

from __future__ import annotations

import torch
from raylign.data.types import TokenBatch, TokenOutputs
from raylign.trainer.functional.known_gradient import logprobs_of_frozen_head, logprobs_of_known_gradient
from raylign.trainer.functional.logprobs import fused_linear_logprobs
from raylign.trainer.functional.packing import pack
from raylign.trainer.models.packed_attention import packed_states
from raylign.trainer.models.sequence_split import SequenceSplit
from torch import Tensor, nn
from transformers import PreTrainedModel


class FusedHead(nn.Module):
    """Takes the place of `lm_head`. A module of its own because ZeRO-3 gathers a weight around the forward (and
    backward) of the module that holds it; the parameter keeps its name, so the state dict stays Hugging Face's."""

    def __init__(self, weight: nn.Parameter, logit_scale: float = 1.0) -> None:
        super().__init__()
        self.weight = weight  # [V, H], the embedding itself when tied
        self.logit_scale = logit_scale  # logits are this times weight @ state (Granite, Cohere)

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropy_grad: bool = False,
        logprob_grad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden `[M, H]`, targets `[M]` -> log-probs, entropy (float32), which targets are likeliest: `[M]`."""
        temperature = temperature / self.logit_scale
        if logprob_grad is not None and torch.is_grad_enabled():
            return logprobs_of_known_gradient(hidden, self.weight, targets, logprob_grad, temperature=temperature)
        if not self.weight.requires_grad and not with_entropy_grad:
            return logprobs_of_frozen_head(hidden, self.weight, targets, temperature=temperature)
        logprobs, entropy, first_choice = fused_linear_logprobs(hidden, self.weight, targets, temperature=temperature)
        return logprobs, entropy if with_entropy_grad else entropy.detach(), first_choice


class CausalLM(nn.Module):
    """Wraps a transformers causal model; `hf` keeps its parameter names (see trainer/models/loading.py).

    The wrapped model's own forward no longer gives logits: its head is fused.
    """

    def __init__(self, hf: PreTrainedModel, *, logit_scale: float = 1.0) -> None:
        super().__init__()
        head = hf.get_output_embeddings()
        hf.set_output_embeddings(FusedHead(head.weight, logit_scale))
        self.hf = hf
        self.split: SequenceSplit | None = None  # of a batch's tokens over ranks that are all given it

    def forward(
        self,
        tokens: TokenBatch,
        *,
        temperature: float,
        with_entropy_grad: bool = False,
        logprob_grad: Tensor | None = None,
    ) -> TokenOutputs:
        """Log-prob and entropy of every response token under logits / temperature, `[N]` float32, zero off-mask.

        `logprob_grad` `[N]`: the loss's gradient with respect to the log-probs, where it is known already; the head
        then forms its gradients in the forward pass (trainer/functional/known_gradient.py).
        Raises ValueError when the first token of a sequence is a response token: nothing predicts it.
        """
        targets_at = response_positions(tokens)
        packing = pack(tokens)
        states = packed_states(self.hf.base_model, tokens, packing, self.split)  # [M, H], or this rank's part
        rows = packing.rows[targets_at - 1]
        if self.split is not None:
            rows = self.split.place(rows, packing.tokens.numel())
            own = (rows >= 0) & (rows < states.shape[0])
            rows, targets_at = rows[own], targets_at[own]
        found = self.hf.get_output_embeddings()(
            states.index_select(0, rows),
            tokens.input_ids[targets_at],
            temperature,
            with_entropy_grad,
            None if logprob_grad is None else logprob_grad[targets_at],
        )
        logprobs, entropy, first_choice = (
            one.new_zeros(tokens.num_tokens).index_put((targets_at,), one) for one in found
        )
        if self.split is not None:
            logprobs, entropy, chosen = self.split.added(torch.stack([logprobs, entropy, first_choice.float()]))
            first_choice = chosen > 0
        return TokenOutputs(logprobs=logprobs, entropy=entropy, first_choice=first_choice)


def response_positions(tokens: TokenBatch) -> Tensor:
    """Indices `[M]` of the tokens under `response_mask`; each is predicted by the state one token earlier.

    Raises ValueError when one of them opens its sequence.
    """
    starts = tokens.cu_seqlens[:-1].to(torch.int64)
    orphans = tokens.response_mask[starts].nonzero()[:, 0]
    if orphans.numel():
        raise ValueError(
            f"sequence {int(orphans[0])} of the batch begins with a response token, which no state predicts; "
            "put at least one prompt (or BOS) token before it"
        )
    return tokens.response_mask.nonzero()[:, 0]
