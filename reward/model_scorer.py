"""The reward model: one number for a prompt with its response, read off the state after the last token.

No padding exists here, so none can hide an end token; the last token is where the sequence ends, by `cu_seqlens`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from raylign.conf.schema import Device, Precision
from raylign.data.batching import plan_forward
from raylign.data.end_tokens import EndTokens
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import Completion, FinishReason, Prompt
from raylign.data.work import UnitWork
from raylign.reward.heads import Judged, read_heads
from raylign.reward.interfaces import RewardRuleError
from raylign.reward.model_forward import Forward, OwnForward, ShardedForward
from raylign.trainer.models.architecture import length_limit
from raylign.trainer.models.loading import load_scalar_model


class ModelScorer:
    """Scores token sequences; a score depends on its own sequence alone."""

    def __init__(
        self, folder: str, *, precision: Precision, device: Device, micro_batch_tokens: int, ranks: int = 1
    ) -> None:
        """`ranks`: processes that hold the model in parts; 1: this one holds all of it.

        Raises ModelLoadError for a folder that is not a scalar-head model with a tokenizer, and ModelLost.
        """
        self._forward = _forward(folder, precision=precision, device=device, ranks=ranks)
        self._micro_batch_tokens = micro_batch_tokens
        config = self._forward.config
        self._max_length = int(config.get_text_config().max_position_embeddings)
        if own := length_limit(config):  # past it a score would depend on its company
            self._max_length = min(self._max_length, own[0])
        tokenizer = load_tokenizer(folder)
        self._ends = EndTokens(tokenizer)
        self._folder = Path(folder)
        self._heads: torch.Tensor | None = None
        self._special = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)

    def sequence(self, prompt: Prompt, completion: Completion) -> tuple[int, ...]:
        """The ids to score, in the form the model was trained on (data/encoder.py): a finished answer ends with one
        end token, a cut one with none.

        Raises RewardRuleError when it is longer than the model's context.
        """
        answer = completion.response_ids
        if completion.finish_reason is FinishReason.STOP and not (answer and answer[-1] in self._ends.ids):
            # An end token that only the policy's folder lists becomes this model's own; one that the engine left out,
            # because a string stopped it, is put there.
            answer = (*(answer[:-1] if answer and answer[-1] in self._special else answer), self._ends.usual_id)
        ids = (*prompt.token_ids, *answer)
        self.check_length(ids)
        return ids

    def check_length(self, ids: Sequence[int]) -> None:
        """Raises RewardRuleError when they are more than the model's context."""
        if len(ids) > self._max_length:
            raise RewardRuleError(f"{len(ids)} tokens are more than the reward model's context of {self._max_length}")

    def score(self, sequences: Sequence[Sequence[int]], prompt_tokens: Sequence[int]) -> list[float]:
        """One score a sequence, in order; may be non-finite, which the caller must not train on.

        `prompt_tokens`: of each sequence; answers to one prompt are scored side by side, which costs less.
        """
        scores = [math.nan] * len(sequences)
        for rows, found in self._passes(sequences, prompt_tokens, features=False):
            for row, value in zip(rows, found.tolist(), strict=True):
                scores[row] = value
        return scores

    def features(self, sequences: Sequence[Sequence[int]], prompt_tokens: Sequence[int]) -> torch.Tensor:
        """What the head reads of each sequence, `[S, H]` float32 on the CPU."""
        states = torch.empty(len(sequences), len(self.head))
        for rows, found in self._passes(sequences, prompt_tokens, features=True):
            states[list(rows)] = found
        return states

    @property
    def head(self) -> torch.Tensor:
        """The trained head, `[H]` float32 on the CPU."""
        return self._forward.head

    def judged(self, sequences: Sequence[Sequence[int]], prompt_tokens: Sequence[int]) -> list[Judged]:
        """As `score`, by the heads of the folder's ensemble: mean and spread. Raises ModelLoadError without one."""
        if self._heads is None:
            self._heads = read_heads(self._folder, self.head)
        scores = self.features(sequences, prompt_tokens) @ self._heads.T
        return [Judged(*pair) for pair in zip(scores.mean(1).tolist(), scores.std(1).tolist(), strict=True)]

    def _passes(
        self, sequences: Sequence[Sequence[int]], prompt_tokens: Sequence[int], *, features: bool
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """What each micro-batch gave, with the places of its sequences."""
        if not sequences:
            return
        work = [
            UnitWork(tuple(ids[:prompt]), prompt, len(ids) - prompt)
            for ids, prompt in zip(sequences, prompt_tokens, strict=True)
        ]
        plan = plan_forward(work, num_ranks=self._forward.num_ranks, micro_batch_tokens=self._micro_batch_tokens)
        batches = [[[sequences[row] for row in rows] for rows in rank] for rank in plan]
        for rank, found in zip(plan, self._forward.ask(batches, features=features), strict=True):
            yield from zip(rank, found, strict=True)


def _forward(folder: str, *, precision: Precision, device: Device, ranks: int) -> Forward:
    if ranks > 1:
        return ShardedForward(folder, precision=precision, device=device, ranks=ranks)
    model = load_scalar_model(folder, precision=precision, device=device).eval()
    return OwnForward(model, torch.device(device.value))
