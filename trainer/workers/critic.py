"""The critic: values, updates, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylign.data.types import CriticExperience, Denominators
from raylign.rollout.interfaces import GroupHandle, Ref
from raylign.trainer.algorithms.base import ActorCriticAlgorithm, LossOutput
from raylign.trainer.loops.interfaces import TensorShards, UpdateResult
from raylign.trainer.models.scalar_head import values_from_states
from raylign.trainer.verified_folder import FileDigest
from raylign.trainer.workers.learner_group import LearnerGroup
from torch import nn


@dataclass(frozen=True, slots=True)
class CriticObjective:
    """A micro-batch's value loss. Travels to the ranks."""

    algorithm: ActorCriticAlgorithm

    def __call__(self, model: nn.Module, batch: CriticExperience, denominators: Denominators) -> LossOutput:
        """Collective under ZeRO-3."""
        estimates = values_from_states(model(batch.tokens), batch.tokens)
        return self.algorithm.value_loss(estimates.values, batch, denominators)


class CriticGroup:
    """Facade over the critic's ranks: a loops.CriticGroup."""

    def __init__(self, learners: LearnerGroup, algorithm: ActorCriticAlgorithm) -> None:
        self._learners = learners
        self._objective = CriticObjective(algorithm)

    async def values(self, groups: Sequence[GroupHandle]) -> TensorShards:
        """Of the present weights."""
        return await self._learners.values(groups)

    async def update(self, shards: Sequence[Ref]) -> UpdateResult:
        """All optimizer steps of one round."""
        return await self._learners.update(shards, self._objective)

    @property
    def learners(self) -> LearnerGroup:
        """The ranks, which may share cards with engines."""
        return self._learners

    @property
    def num_ranks(self) -> int:
        """Ranks of the role."""
        return self._learners.num_ranks

    async def save(self, folder: str) -> None:
        """Begin to write weights and optimizer state as they are now."""
        await self._learners.save(folder)

    async def saved(self) -> Mapping[str, FileDigest]:
        """The files of `save`, when they are on disk."""
        return await self._learners.saved()

    async def restore(self, folder: str) -> None:
        """Continue from `save`."""
        await self._learners.restore(folder)

    async def export(self, folder: str) -> None:
        """A plain Hugging Face folder."""
        await self._learners.export(folder)

    def stop(self) -> None:
        """Kill every rank."""
        self._learners.stop()
