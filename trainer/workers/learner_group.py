"""All ranks of a learner behind typed calls. The facades of policy, critic and reference are made of this."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.actor import ActorHandle
from raylign.cluster.rank import RankInfo
from raylign.cluster.reserve import Reservation
from raylign.cluster.shared_folder import SharedFolder
from raylign.cluster.worker_group import WorkerGroup
from raylign.data.types import TokenBatch
from raylign.rollout.interfaces import Canary, GroupHandle, Ref, TransferLink
from raylign.trainer.checkpoint import CheckpointError
from raylign.trainer.engine.state_file import rank_file
from raylign.trainer.learner import Objective
from raylign.trainer.loops.interfaces import TensorShards, UpdateResult
from raylign.trainer.verified_folder import FileDigest
from raylign.trainer.workers.forward_plan import RankPass, plan_group_passes
from raylign.trainer.workers.learner_worker import LearnerWorker, StagedWeights
from raylign.trainer.workers.preflight import prove_links
from raylign.trainer.workers.rank_process import RankProcess, rank_environment
from raylign.trainer.workers.specs import LearnerSpec
from torch import Tensor

SAVED_LOOK_S = 0.2
"""Pause between two questions whether a checkpoint is written. A rank that computes answers afterwards."""


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """How a role is run, whatever it computes."""

    role: str
    process: RankProcess
    micro_batch_tokens: int  # of a forward pass
    start_timeout_s: float
    step_timeout_s: float
    log_dir: str
    run_folder: SharedFolder  # where ranks write: proved to be the driver's before a model is loaded
    profiled: tuple[int, ...] = ()  # updates of rank 0 to profile, counted from its start
    sequence_parallel_size: int = 1  # neighbouring ranks that are given the same batches and compute them together


class LearnerGroup:
    """One role's ranks. Every method has a deadline and raises RoleError."""

    def __init__(self, group: WorkerGroup, settings: GroupSettings) -> None:
        self._group = group
        self._settings = settings

    @classmethod
    async def start(
        cls, spec: LearnerSpec, settings: GroupSettings, *, reservation: Reservation, cores: Mapping[str, int]
    ) -> LearnerGroup:
        """Start every rank of `settings.role` where it was placed. `cores`: CPU cores by node id."""
        slots = reservation.placement.of(settings.role)
        group = WorkerGroup.spawn(
            LearnerWorker,
            role=settings.role,
            options=[reservation.options(slot) for slot in slots],
            env_vars=[rank_environment(settings.process, reservation.placement, slot, cores) for slot in slots],
            args=[
                (
                    RankInfo(s.role, s.rank, len(slots), settings.log_dir),
                    spec,
                    settings.step_timeout_s,
                    settings.profiled,
                )
                for s in slots
            ],
        )
        self = cls(group, settings)
        try:
            await group.call(
                lambda a, _: a.prove_folder.remote(settings.run_folder),
                verb="start",
                timeout_s=settings.start_timeout_s,
            )
            await prove_links(group, slots, settings.start_timeout_s)
            meeting = await group.call_rank(
                0, lambda a, _: a.meeting_point.remote(), verb="start", timeout_s=settings.start_timeout_s
            )
            await group.call(lambda a, _: a.start.remote(meeting), verb="start", timeout_s=settings.start_timeout_s)
        except BaseException:
            group.stop()
            raise
        return self

    @property
    def num_ranks(self) -> int:
        """Ranks of the role."""
        return len(self._group)

    @property
    def num_shards(self) -> int:
        """Parts that data is dealt in: ranks that compute a batch together get the same one."""
        return len(self._group) // self._together

    @property
    def _together(self) -> int:
        return self._settings.sequence_parallel_size

    @property
    def actors(self) -> tuple[ActorHandle, ...]:
        """By rank."""
        return self._group.actors

    @property
    def broken(self) -> bool:
        """Whether a rank has failed: the group is only good for `stop`."""
        return self._group.broken

    async def logprobs(
        self,
        groups: Sequence[GroupHandle],
        *,
        temperature: float,
        without_adapters: bool = False,
        as_teacher: bool = False,
    ) -> TensorShards:
        """References to list[Tensor]: log-probs of each group's tokens, by the whole model or its frozen part, and
        after the policy's prompts or those that a teacher reads.
        """
        passes = self._passes(groups)
        budget = self._settings.micro_batch_tokens if as_teacher else 0
        refs = await self._group.call(
            lambda a, r: a.logprobs.remote(*self._given(groups, passes, r), temperature, without_adapters, budget),
            verb="log-probs",
            timeout_s=self._settings.step_timeout_s,
        )
        return TensorShards(tuple(refs[:: self._together]), tuple(p.groups for p in passes))

    async def sequence_logprobs(self, batches: Sequence[Sequence[TokenBatch]]) -> list[list[Tensor]]:
        """Summed log-probs `[S]` of every batch; those that compute together look at one of the `num_shards`."""
        found = await self._all(lambda a, r: a.sequence_logprobs.remote(batches[r // self._together]), verb="log-probs")
        return found[:: self._together]

    async def values(self, groups: Sequence[GroupHandle]) -> TensorShards:
        """References to list[ValueEstimates]."""
        passes = self._passes(groups)
        refs = await self._group.call(
            lambda a, r: a.values.remote(*self._given(groups, passes, r)),
            verb="values",
            timeout_s=self._settings.step_timeout_s,
        )
        return TensorShards(tuple(refs[:: self._together]), tuple(p.groups for p in passes))

    async def update(self, shards: Sequence[Ref], objective: Objective[Any]) -> UpdateResult:
        """Each of `num_shards` is trained on by the ranks that compute together."""
        results: list[UpdateResult] = await self._step(
            lambda a, r: a.update.remote(shards[r // self._together], objective), verb="update", shards=shards
        )
        return results[0]

    async def evaluate(self, shards: Sequence[Ref], objective: Objective[Any]) -> Mapping[str, float]:
        """The objective's metrics without training."""
        results: list[Mapping[str, float]] = await self._step(
            lambda a, r: a.evaluate.remote(shards[r // self._together], objective), verb="evaluation", shards=shards
        )
        return results[0]

    async def stage_weights(self, bucket_bytes: int, *, adapters_only: bool = False) -> StagedWeights:
        """The present weights, or their adapters alone, in the object store."""
        staged = await self._all(
            lambda a, _: a.stage_weights.remote(bucket_bytes, adapters_only), verb="weight staging"
        )
        return staged[0]

    async def announce_weights(self) -> StagedWeights:
        """What the present weights are, to be broadcast."""
        staged = await self._all(lambda a, _: a.announce_weights.remote(), verb="weight digests")
        return staged[0]

    async def open_transfer(
        self, *, workers: int, ranks_per_worker: int, timeout_s: float, bucket_bytes: int
    ) -> TransferLink:
        """Where engines meet rank 0. `timeout_s`: of each phase."""
        return await self._group.call_rank(
            0,
            lambda a, _: a.open_transfer.remote(workers, ranks_per_worker, timeout_s, bucket_bytes),
            verb="rendezvous",
            timeout_s=self._settings.step_timeout_s,
        )

    async def join_transfer(self) -> str:
        """Why rank 0 did not meet the engines; empty when it did."""
        return await self._group.call_rank(
            0, lambda a, _: a.join_transfer.remote(), verb="rendezvous", timeout_s=self._settings.step_timeout_s
        )

    async def send_weights(self) -> str:
        """Why the broadcast broke off; empty when every engine has the weights."""
        return (await self._all(lambda a, _: a.send_weights.remote(), verb="broadcast"))[0]

    async def offload_state(self) -> None:
        """Optimizer state to the hosts."""
        await self._all(lambda a, _: a.offload_state.remote(), verb="leaving the card")

    async def reload_state(self) -> None:
        """And back."""
        await self._all(lambda a, _: a.reload_state.remote(), verb="coming back to the card")

    async def canaries(self, sequences: Sequence[Sequence[int]]) -> list[Canary]:
        """The model's log-probs of fixed tokens."""
        return (await self._all(lambda a, _: a.canaries.remote(sequences), verb="canaries"))[0]

    async def vocab_size(self) -> int:
        """Token ids the model knows."""
        return (await self._all(lambda a, _: a.vocab_size.remote(), verb="vocabulary"))[0]

    async def save(self, folder: str) -> None:
        """Begin to write one file a rank under `folder`, of the state as it is now; other calls may follow at once."""
        await self._all(lambda a, _: a.save.remote(folder), verb="save")

    async def saved(self) -> Mapping[str, FileDigest]:
        """The files that `save` began, by name, when all are on disk and read back.

        Raises CheckpointError when a rank could not write its own, after all have ended.
        """
        until = asyncio.get_running_loop().time() + self._settings.step_timeout_s
        while None in (told := await self._all(lambda a, _: a.saved.remote(), verb="save")):
            if asyncio.get_running_loop().time() > until:
                late = [rank for rank, one in enumerate(told) if one is None]
                raise CheckpointError(
                    f"{self._settings.role} rank {late[0]}: not written within cluster.step_timeout_s"
                )
            await asyncio.sleep(SAVED_LOOK_S)
        for rank, one in enumerate(told):
            if not isinstance(one, FileDigest):
                raise CheckpointError(f"{self._settings.role} rank {rank}: {one}")
        return {rank_file(rank): digest for rank, digest in enumerate(told)}

    async def restore(self, folder: str) -> None:
        """Continue from `save`."""
        await self._all(lambda a, _: a.restore.remote(folder), verb="restore")

    async def export(self, folder: str) -> None:
        """A plain Hugging Face folder."""
        await self._all(lambda a, _: a.export.remote(folder), verb="export")

    def stop(self) -> None:
        """Kill every rank."""
        self._group.stop()

    def _passes(self, groups: Sequence[GroupHandle]) -> list[RankPass]:
        budget = self._settings.micro_batch_tokens
        return plan_group_passes([g.metas for g in groups], num_ranks=self.num_shards, micro_batch_tokens=budget)

    def _given(
        self, groups: Sequence[GroupHandle], passes: Sequence[RankPass], rank: int
    ) -> tuple[list[Ref], RankPass]:
        """References in a list, so that Ray passes them on instead of the groups."""
        share = passes[rank // self._together]
        return [groups[g].ref for g in share.groups], share

    async def _step(self, each: Any, *, verb: str, shards: Sequence[Ref]) -> list[Any]:
        if len(shards) != self.num_shards:
            raise ValueError(f"{self._settings.role}: {len(shards)} shards for {self.num_shards}")
        return await self._all(each, verb=verb)

    async def _all(self, each: Any, *, verb: str) -> list[Any]:
        return await self._group.call(each, verb=verb, timeout_s=self._settings.step_timeout_s)
