"""The frozen reference: log-probs only."""

from __future__ import annotations

from collections.abc import Sequence

from raylign.rollout.interfaces import GroupHandle
from raylign.trainer.loops.interfaces import TensorShards
from raylign.trainer.workers.learner_group import LearnerGroup


class ReferenceGroup:
    """Facade over the reference's replicas: a loops.ReferenceGroup.

    `without_adapters`: the ranks are the policy's, whose frozen weights are those the run started from.
    """

    def __init__(self, learners: LearnerGroup, *, without_adapters: bool = False) -> None:
        self._learners = learners
        self._without_adapters = without_adapters

    async def logprobs(self, groups: Sequence[GroupHandle], *, temperature: float) -> TensorShards:
        """Of the frozen weights; after the prompts that a teacher reads, where the rows have such."""
        return await self._learners.logprobs(
            groups, temperature=temperature, without_adapters=self._without_adapters, as_teacher=True
        )

    @property
    def broken(self) -> bool:
        """Whether a replica has failed."""
        return self._learners.broken

    def stop(self) -> None:
        """Kill every replica."""
        self._learners.stop()
