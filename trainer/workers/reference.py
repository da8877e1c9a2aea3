"""The frozen reference: log-probs only."""

from __future__ import annotations

from collections.abc import Sequence

from raylign.rollout.interfaces import GroupHandle
from raylign.trainer.loops.interfaces import TensorShards
from raylign.trainer.workers.learner_group import LearnerGroup


class ReferenceGroup:
    """Facade over the reference's replicas: a loops.ReferenceGroup."""

    def __init__(self, learners: LearnerGroup) -> None:
        self._learners = learners

    async def logprobs(self, groups: Sequence[GroupHandle], *, temperature: float) -> TensorShards:
        """Of the weights the run started from."""
        return await self._learners.logprobs(groups, temperature=temperature)

    def stop(self) -> None:
        """Kill every replica."""
        self._learners.stop()
