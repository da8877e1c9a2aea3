"""The policy: log-probs, updates, checkpoints, and the learner's side of a weight transaction."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylign.conf.schema import SyncConfig, SyncTransport
from raylign.data.types import Denominators, PolicyExperience
from raylign.rollout.interfaces import Canary, GroupHandle, Ref, TransferLink, WeightManifest
from raylign.trainer.algorithms.base import LossOutput, OnlineAlgorithm
from raylign.trainer.loops.interfaces import TensorShards, UpdateResult
from raylign.trainer.verified_folder import FileDigest
from raylign.trainer.workers.learner_group import LearnerGroup
from raylign.trainer.workers.learner_worker import StagedWeights
from torch import nn

_CANARY_TOKENS = 32
_MEMBERS_SHARE = 0.8
"""Of a phase's deadline: whoever only waits for another says so itself, before the publication takes it for late."""


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """A micro-batch's policy loss. Travels to the ranks."""

    algorithm: OnlineAlgorithm
    kl_coef: float
    temperature: float  # of sampling: the ratio compares like with like
    entropy_gradient: bool  # the loss has an entropy bonus

    def __call__(self, model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
        """Collective under ZeRO-3."""
        outputs = model(batch.tokens, temperature=self.temperature, with_entropy_grad=self.entropy_gradient)
        return self.algorithm.policy_loss(outputs, batch, denominators, kl_coef=self.kl_coef)


class PolicyGroup:
    """Facade over the policy's ranks: a loops.PolicyGroup, a WeightSource and a BroadcastSource."""

    def __init__(
        self,
        learners: LearnerGroup,
        algorithm: OnlineAlgorithm,
        sync: SyncConfig,
        *,
        temperature: float,
        entropy_gradient: bool,
        ranks_per_worker: int = 1,
    ) -> None:
        """`ranks_per_worker`: tensor-parallel size of the engines that are published to."""
        self._ranks_per_worker = ranks_per_worker
        self._learners = learners
        self._algorithm = algorithm
        self._sync = sync
        self._temperature = temperature
        self._entropy_gradient = entropy_gradient
        self._staged: StagedWeights | None = None

    @property
    def learners(self) -> LearnerGroup:
        """The ranks, for a reference that shares them."""
        return self._learners

    async def logprobs(self, groups: Sequence[GroupHandle], *, temperature: float) -> TensorShards:
        """Of the present weights."""
        return await self._learners.logprobs(groups, temperature=temperature)

    async def update(self, shards: Sequence[Ref], *, kl_coef: float) -> UpdateResult:
        """All optimizer steps of one round."""
        self._staged = None
        objective = PolicyObjective(self._algorithm, kl_coef, self._temperature, self._entropy_gradient)
        return await self._learners.update(shards, objective)

    async def vocab_size(self) -> int:
        """Token ids the model knows."""
        return await self._learners.vocab_size()

    async def manifest(self, version: int, *, adapters_only: bool = False) -> WeightManifest:
        """Say what the present weights are; staged, or their adapters alone, where the object store moves them."""
        self._staged = None  # frees the previous version's buckets before the next are made
        if self._sync.transport is SyncTransport.broadcast and not adapters_only:
            staged = await self._learners.announce_weights()
        else:
            staged = await self._learners.stage_weights(self._sync.bucket_mb << 20, adapters_only=adapters_only)
        self._staged = staged
        return WeightManifest(version, staged.tensors, staged.tied_embeddings, adapters=staged.adapters)

    async def canaries(self) -> list[Canary]:
        """Log-probs of fixed random tokens: they reach every row of the head, not only the likely ones."""
        vocab_size = await self._learners.vocab_size()
        draw = random.Random(20240607)
        return await self._learners.canaries(
            [[draw.randrange(vocab_size) for _ in range(_CANARY_TOKENS)] for _ in range(self._sync.canary_prompts)]
        )

    async def buckets(self) -> list[Ref]:
        """Of the last `manifest`. Raises RuntimeError when there was none since the last update."""
        if self._staged is None:
            raise RuntimeError("weights are staged by manifest(); it was not called since the last update")
        return [Ref(ref) for ref in self._staged.buckets]

    async def open_transfer(self, num_workers: int) -> TransferLink:
        """Begin a transfer by broadcast."""
        return await self._learners.open_transfer(
            workers=num_workers,
            ranks_per_worker=self._ranks_per_worker,
            timeout_s=_MEMBERS_SHARE * self._sync.timeout_s,
            bucket_bytes=self._sync.bucket_mb << 20,
        )

    async def join_transfer(self) -> str:
        """Meet the workers."""
        return await self._learners.join_transfer()

    async def send_weights(self) -> str:
        """Broadcast what `manifest` announced."""
        return await self._learners.send_weights()

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
        self._staged = None
        await self._learners.restore(folder)

    async def export(self, folder: str) -> None:
        """A plain Hugging Face folder."""
        await self._learners.export(folder)

    def stop(self) -> None:
        """Kill every rank."""
        self._learners.stop()
