"""A reward model in training: updates on pairs, held-out figures, checkpoints, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from data.types import Denominators, PairBatch
from rollout.interfaces import Ref
from trainer.algorithms.base import LossOutput, PairwiseAlgorithm
from trainer.loops.interfaces import UpdateResult
from trainer.models.scalar_head import last_states
from trainer.workers.learner_group import LearnerGroup


@dataclass(frozen=True, slots=True)
class PairObjective:
    """A micro-batch's preference loss. Travels to the ranks."""

    algorithm: PairwiseAlgorithm

    def __call__(self, model: nn.Module, batch: PairBatch, denominators: Denominators) -> LossOutput:
        """Collective under ZeRO-3."""
        return self.algorithm.pair_loss(last_states(model(batch.tokens), batch.tokens), batch, denominators)


class RewardModelGroup:
    """Facade over the ranks of a reward model in training: a loops.offline.OfflineLearner."""

    def __init__(self, learners: LearnerGroup, algorithm: PairwiseAlgorithm) -> None:
        self._learners = learners
        self._objective = PairObjective(algorithm)

    async def update(self, shards: Sequence[Ref]) -> UpdateResult:
        """One round of optimizer steps."""
        return await self._learners.update(shards, self._objective)

    async def evaluate(self, shards: Sequence[Ref]) -> Mapping[str, float]:
        """Held-out figures."""
        return await self._learners.evaluate(shards, self._objective)

    async def save(self, folder: str) -> None:
        """Weights and optimizer state."""
        await self._learners.save(folder)

    async def restore(self, folder: str) -> None:
        """Continue from `save`."""
        await self._learners.restore(folder)

    async def export(self, folder: str) -> None:
        """A plain Hugging Face folder: what `reward.model` names."""
        await self._learners.export(folder)

    def stop(self) -> None:
        """Kill every rank."""
        self._learners.stop()
