"""A model in offline training: updates on rows, held-out figures, checkpoints, export; for every algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from raylign.data.types import Denominators, TokenBatch
from raylign.rollout.interfaces import Ref
from raylign.trainer.algorithms.base import (
    CausalAlgorithm,
    LinearAlgorithm,
    LossOutput,
    MeasuringAlgorithm,
    ModelKind,
    OfflineAlgorithm,
    ScalarAlgorithm,
)
from raylign.trainer.learner import Objective
from raylign.trainer.loops.interfaces import UpdateResult
from raylign.trainer.models.scalar_head import last_states
from raylign.trainer.verified_folder import FileDigest
from raylign.trainer.workers.learner_group import LearnerGroup
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ScalarObjective:
    """A micro-batch's loss from the score of each sequence. Travels to the ranks, as the others here."""

    algorithm: ScalarAlgorithm

    def __call__(self, model: nn.Module, batch: Any, denominators: Denominators) -> LossOutput:
        """Collective under ZeRO-3."""
        return self.algorithm.loss(last_states(model(batch.tokens), batch.tokens), batch, denominators)


@dataclass(frozen=True, slots=True)
class CausalObjective:
    """A micro-batch's loss from the log-probs of its tokens."""

    algorithm: CausalAlgorithm

    def __call__(self, model: nn.Module, batch: Any, denominators: Denominators) -> LossOutput:
        """Collective under ZeRO-3."""
        return self.algorithm.loss(model(batch.tokens, temperature=1.0), batch, denominators)


@dataclass(frozen=True, slots=True)
class LinearObjective:
    """The same where the loss's gradient with respect to them is known beforehand."""

    algorithm: CausalAlgorithm

    def __call__(self, model: nn.Module, batch: Any, denominators: Denominators) -> LossOutput:
        """Collective under ZeRO-3."""
        known = cast("LinearAlgorithm", self.algorithm).logprob_gradient(batch, denominators)
        return self.algorithm.loss(model(batch.tokens, temperature=1.0, logprob_grad=known), batch, denominators)


@dataclass(frozen=True, slots=True)
class MeasuringObjective(CausalObjective):
    """One whose algorithm needs a figure of the whole step first: a learner.MeasuredObjective."""

    def measure(self, model: nn.Module, batch: Any, denominators: Denominators) -> Tensor:
        """Collective under ZeRO-3."""
        algorithm = cast("MeasuringAlgorithm", self.algorithm)
        outputs = model(algorithm.measured_tokens(batch), temperature=1.0)
        return algorithm.measure(outputs, batch, denominators)

    def given(self, figure: Tensor) -> MeasuringObjective:
        """With the step's figure."""
        return replace(self, algorithm=cast("MeasuringAlgorithm", self.algorithm).given(figure))


def objective_of(algorithm: OfflineAlgorithm) -> Objective[Any]:
    """What the ranks are sent, by what the algorithm says it needs."""
    if algorithm.needs.model is ModelKind.SCALAR:
        return ScalarObjective(cast("ScalarAlgorithm", algorithm))
    if isinstance(algorithm, MeasuringAlgorithm):
        return MeasuringObjective(cast("CausalAlgorithm", algorithm))
    if isinstance(algorithm, LinearAlgorithm):
        return LinearObjective(cast("CausalAlgorithm", algorithm))
    return CausalObjective(cast("CausalAlgorithm", algorithm))


class OfflineModelGroup:
    """Facade over the ranks of a model in training: a loops.offline.OfflineLearner."""

    def __init__(self, learners: LearnerGroup, algorithm: OfflineAlgorithm) -> None:
        self._learners = learners
        self._objective = objective_of(algorithm)

    async def update(self, shards: Sequence[Ref]) -> UpdateResult:
        """One round of optimizer steps."""
        return await self._learners.update(shards, self._objective)

    async def evaluate(self, shards: Sequence[Ref]) -> Mapping[str, float]:
        """Held-out figures."""
        return await self._learners.evaluate(shards, self._objective)

    async def sequence_logprobs(self, batches: Sequence[Sequence[TokenBatch]]) -> list[list[Tensor]]:
        """Summed log-probs `[S]` of every batch under the present weights; rank r looks at `batches[r]`."""
        return await self._learners.sequence_logprobs(batches)

    @property
    def num_ranks(self) -> int:
        """Ranks of the model."""
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
