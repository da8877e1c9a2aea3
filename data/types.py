"""The types that cross stage boundaries: one type a stage, shapes on the fields.

Shape letters: N tokens (flat, all sequences end to end, never padded), S sequences, R response tokens.

**The one alignment.** Every per-token tensor is flat `[N]` and entry t belongs to token t: `logprobs[t]` is the
log-probability of token t given the tokens before it in its sequence, `values[t]` the value of the state in which
token t was chosen, `rewards[t]` the reward received for it. Entries where `response_mask` is False are zero.
Sequence s occupies `[cu_seqlens[s], cu_seqlens[s + 1])`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from itertools import pairwise
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from raylign.data.completion import Completion, Episode, FinishReason, SampleKey, Turn, VersionSpan  # noqa: F401
from raylign.data.work import UnitWork, work_of
from torch import Tensor


class RowKind(Enum):
    """What one row of a training set is."""

    CONVERSATIONS = "conversations"  # a prompt and its completion, or turns: the assistant's words are trained
    DOCUMENTS = "documents"  # raw text, every token but the first trained
    PAIRS = "pairs"  # two answers to one prompt, the better one first
    JUDGED = "judged"  # an answer and whether it is desirable


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str
    extra: str = ""  # the turn's other fields (tool_calls, reasoning_content, name) as a JSON object; "": none


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt, ready to be sampled from. `prompt_id` is unique in its data set and stable over epochs."""

    prompt_id: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    data_source: str = "default"
    ground_truth: str | None = None
    columns: str = ""  # the row's other columns as a JSON object, for reward functions; "": none
    teacher_ids: tuple[int, ...] = ()  # the prompt as the reference reads it, where that is another one

    @property
    def text(self) -> str:
        """The last user turn: what a person would call the question."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How responses are drawn. Trainer log-probs divide logits by the same `temperature`.

    `top_p` below 1 changes the sampled distribution without changing the trainer's, so training rollouts require 1.
    Stops end an answer and change no distribution: the tokens up to the end of a stop, it included, are the response.
    """

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()  # texts; they stay in the completion's text
    stop_token_ids: tuple[int, ...] = ()  # each ends a response and is its last token; the model's own EOS does anyway


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """All samples of one prompt: the unit that is routed, scored and stored as one object."""

    prompt: Prompt
    sampling: SamplingParams
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class RolloutMeta:
    """What the controller keeps of one sample (well under 1 KB); the tensors stay in the object store."""

    key: SampleKey
    prompt_tokens: int
    response_tokens: int
    finish_reason: FinishReason
    min_policy_version: int
    max_policy_version: int
    mean_policy_version: float  # over response tokens

    @property
    def num_tokens(self) -> int:
        """Prompt and response tokens together."""
        return self.prompt_tokens + self.response_tokens


@dataclass(frozen=True, slots=True)
class Reward:
    """A score with its parts. `components` sum to nothing in particular; they are for reading."""

    key: SampleKey
    score: float
    components: Mapping[str, float]
    steps: tuple[tuple[int, float], ...] = ()  # what part of the score was received at which earlier response token


@dataclass(frozen=True, slots=True)
class RewardFailure:
    """A reward that could not be had. Never 0: the sample leaves the batch and its group's baseline."""

    key: SampleKey
    reason: str
    unreadable: bool = False  # a judge answered, and no score could be read from its reply


RewardOutcome = Reward | RewardFailure


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """S token sequences laid end to end."""

    input_ids: Tensor  # [N] int64
    cu_seqlens: Tensor  # [S + 1] int32, cu_seqlens[0] = 0, cu_seqlens[-1] = N
    response_mask: Tensor  # [N] bool: tokens the policy produced (or, offline, tokens to be trained)

    @classmethod
    def from_sequences(cls, ids: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]]) -> Self:
        """Concatenate ragged sequences. Raises ValueError when an id list and its mask differ in length."""
        for row, mask in zip(ids, masks, strict=True):
            if len(row) != len(mask):
                raise ValueError(f"a sequence of {len(row)} tokens has a mask of {len(mask)}")
        lengths = torch.tensor([0, *(len(row) for row in ids)], dtype=torch.int32)
        return cls(
            input_ids=torch.tensor([t for row in ids for t in row], dtype=torch.int64),
            cu_seqlens=lengths.cumsum(0, dtype=torch.int32),
            response_mask=torch.tensor([m for row in masks for m in row], dtype=torch.bool),
        )

    @property
    def num_sequences(self) -> int:
        """S."""
        return self.cu_seqlens.numel() - 1

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.input_ids.numel()

    @property
    def lengths(self) -> Tensor:
        """Tokens in each sequence, [S] int32."""
        return self.cu_seqlens.diff()

    def sequences(self) -> list[tuple[list[int], list[bool]]]:
        """Ids and response mask of each sequence."""
        ids, mask, bounds = self.input_ids.tolist(), self.response_mask.tolist(), self.cu_seqlens.tolist()
        return [(ids[a:b], mask[a:b]) for a, b in pairwise(bounds)]

    def token_index(self, rows: Sequence[int]) -> Tensor:
        """Positions in `[0, N)` of the tokens of `rows`, in the order of `rows`. [sum of their lengths] int64."""
        starts = self.cu_seqlens.tolist()
        return torch.cat([torch.arange(starts[r], starts[r + 1]) for r in rows]) if rows else torch.empty(0).long()

    def select(self, rows: Sequence[int]) -> TokenBatch:
        """A new batch of the given sequences, in that order."""
        index = self.token_index(rows)
        lengths = self.lengths[torch.tensor(list(rows), dtype=torch.int64)] if rows else self.lengths[:0]
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0, dtype=torch.int32)])
        return TokenBatch(self.input_ids[index], cu_seqlens, self.response_mask[index])


@dataclass(frozen=True, slots=True)
class Denominators:
    """Global counts of one optimizer step (all ranks, all micro-batches): what every mean of a loss divides by."""

    tokens: float  # trained tokens (response_mask)
    sequences: float  # sequences with at least one trained token
    chosen_tokens: float = 0.0  # of pairs: trained tokens of the chosen sides


@dataclass(frozen=True)  # no slots: ZeRO-3's forward hook reads vars(output)
class TokenOutputs:
    """What a causal model says of each token, `[N]` each, float32 but the last, zero where `response_mask` is False."""

    logprobs: Tensor  # [N] at the given temperature
    entropy: Tensor  # [N] nats, of the same tempered distribution; detached unless asked for with gradient
    first_choice: Tensor  # [N] bool: no token was likelier


@dataclass(frozen=True, slots=True)
class ValueEstimates:
    """The critic's view of S sequences."""

    values: Tensor  # [N] value of the state in which token t was chosen, zero off-mask
    bootstrap: Tensor  # [S] value of the state after the last token: what a truncated response goes on with


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """S finished samples with everything the advantage estimate may read. Failed rewards have left already."""

    tokens: TokenBatch
    group: Tensor  # [S] int64, equal for samples of one prompt
    scores: Tensor  # [S] float32, after composition and shaping
    truncated: Tensor  # [S] bool, by the engine's finish reason
    logprobs: Tensor  # [N] of the policy before the update
    ref_logprobs: Tensor | None  # [N]; None when the reference is off
    estimates: ValueEstimates | None  # None when the algorithm has no critic
    early: Tensor | None = None  # [N] parts of `scores` received before a sequence's last token; None: there are none


@dataclass(frozen=True, slots=True)
class PolicyExperience:
    """What the policy update needs of S sequences. Per-token fields are `[N]`, zero where `response_mask` is False."""

    tokens: TokenBatch
    # [N] by the trainer before the update, or the engine's own when those are trusted; None: the update's own, which is
    # exact with one optimizer step a batch
    old_logprobs: Tensor | None
    rollout_logprobs: Tensor  # [N] by the engine
    ref_logprobs: Tensor | None  # [N]; None when the reference is off
    advantages: Tensor  # [N]

    def units(self) -> list[UnitWork]:
        """The cost of each indivisible unit (here: a sequence)."""
        return [work_of([sequence]) for sequence in self.tokens.sequences()]

    def select(self, units: Sequence[int]) -> PolicyExperience:
        """A new batch of the given sequences."""
        return _select_sequences(self, units)

    def filler(self) -> PolicyExperience:
        """The shortest sequence with nothing to train: keeps ranks in step when one has fewer micro-batches."""
        return _untrained(_select_sequences(self, [_shortest(self.tokens)]))


@dataclass(frozen=True, slots=True)
class CriticExperience:
    """What the critic update needs of S sequences."""

    tokens: TokenBatch
    old_values: Tensor  # [N]
    returns: Tensor  # [N]

    def units(self) -> list[UnitWork]:
        """The cost of each indivisible unit (here: a sequence)."""
        return [work_of([sequence]) for sequence in self.tokens.sequences()]

    def select(self, units: Sequence[int]) -> CriticExperience:
        """A new batch of the given sequences."""
        return _select_sequences(self, units)

    def filler(self) -> CriticExperience:
        """The shortest sequence with nothing to train."""
        return _untrained(_select_sequences(self, [_shortest(self.tokens)]))


@dataclass(frozen=True, slots=True)
class PairBatch:
    """P preference pairs as 2P sequences: row 2p is chosen, row 2p + 1 rejected."""

    tokens: TokenBatch
    margin: Tensor  # [P] float32: by how much chosen should beat rejected, 0 when unknown
    weight: Tensor  # [P] float32, 0 for a filler
    answers: Tensor | None = None  # [N] bool: the answers' tokens, where `response_mask` has more; None: it has not
    ref_logps: Tensor | None = None  # [2P] float64: each answer's log-prob under the reference; None without one

    def units(self) -> list[UnitWork]:
        """The cost of each indivisible unit (here: both sides of a pair)."""
        sides = self.tokens.sequences()
        return [work_of(pair) for pair in zip(sides[::2], sides[1::2], strict=True)]

    def select(self, units: Sequence[int]) -> PairBatch:
        """A new batch of the given pairs."""
        index = torch.tensor(list(units), dtype=torch.int64)
        rows = [row for p in units for row in (2 * p, 2 * p + 1)]
        return PairBatch(
            self.tokens.select(rows),
            self.margin[index],
            self.weight[index],
            None if self.answers is None else self.answers[self.tokens.token_index(rows)],
            None if self.ref_logps is None else self.ref_logps[torch.tensor(rows, dtype=torch.int64)],
        )

    def filler(self) -> PairBatch:
        """The shortest pair with weight 0 and nothing to train."""
        lengths = self.tokens.lengths.view(-1, 2).sum(1)
        pair = self.select([int(lengths.argmin())])
        tokens = replace(pair.tokens, response_mask=torch.zeros_like(pair.tokens.response_mask))
        answers = None if pair.answers is None else torch.zeros_like(pair.answers)
        return replace(pair, tokens=tokens, weight=torch.zeros_like(pair.weight), answers=answers)


class TrainBatch(Protocol):
    """What batching needs to know of a batch: its indivisible units, and how to take some of them."""

    @property
    def tokens(self) -> TokenBatch: ...
    def units(self) -> list[UnitWork]: ...
    def select(self, units: Sequence[int]) -> Self: ...
    def filler(self) -> Self: ...


B = TypeVar("B", bound=TrainBatch)


@dataclass(frozen=True, slots=True)
class UpdateWindow(Generic[B]):
    """One optimizer step on one rank. Every rank has the same number of micro-batches (fillers make up)."""

    micro_batches: tuple[B, ...]
    denominators: Denominators


@dataclass(frozen=True, slots=True)
class RankShard(Generic[B]):
    """All optimizer steps of one rank for one call of `update`."""

    windows: tuple[UpdateWindow[B], ...]


def _shortest(tokens: TokenBatch) -> int:
    return int(tokens.lengths.argmin())


E_ = TypeVar("E_", PolicyExperience, CriticExperience)


def _select_sequences(batch: E_, rows: Sequence[int]) -> E_:
    """Rows of a batch whose every tensor field is per token."""
    index = batch.tokens.token_index(rows)
    changed: dict[str, Any] = {"tokens": batch.tokens.select(rows)}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = value[index]
    return replace(batch, **changed)


def _untrained(batch: E_) -> E_:
    tokens = replace(batch.tokens, response_mask=torch.zeros_like(batch.tokens.response_mask))
    return replace(batch, tokens=tokens)
