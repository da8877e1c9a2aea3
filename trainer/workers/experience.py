"""The assembler's Ray shell: fetch, assemble, shard, put. The step's tensors never pass through the controller."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from raylign.cluster import preloads
from raylign.cluster.errors import HolderLost
from raylign.cluster.pages import KeptPages
from raylign.cluster.rank import RankInfo
from raylign.cluster.runtime_env import RoleEnv
from raylign.cluster.worker_group import WorkerGroup, classify
from raylign.conf.schema import Device
from raylign.data.batching import shard
from raylign.data.experience import Experience, StageOutputs, assemble
from raylign.data.types import RewardOutcome, RolloutGroup
from raylign.records.journal import Batch, write_batch
from raylign.rollout.interfaces import GroupHandle, Ref
from raylign.trainer.algorithms.base import OnlineAlgorithm
from raylign.trainer.loops.interfaces import ExperienceHandles, StepBatch, TensorShards
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """How one role's share of a step is cut."""

    num_ranks: int
    micro_batch_tokens: int
    units_per_update: int  # sequences of one optimizer step
    epochs: int  # passes over the step's sequences


@dataclass(frozen=True, slots=True)
class StageRefs:
    """Where the forward passes' results lie."""

    logprobs: TensorShards | None
    ref_logprobs: TensorShards | None
    values: TensorShards | None


class AssemblerWorker:
    """One Ray actor, started once: its process has torch loaded and the algorithm at hand."""

    def __init__(
        self,
        algorithm: OnlineAlgorithm,
        policy: ShardSettings,
        critic: ShardSettings | None,
        fetch_timeout_s: float,
        own_logprobs: bool,
        mask_truncated: bool,
        log_dir: str,
    ) -> None:
        RankInfo("assembler", 0, 1, log_dir).open_log()
        self._mask_truncated = mask_truncated
        self._pages = KeptPages()  # it may be the fork of a server whose allocator keeps them
        self._algorithm = algorithm
        self._policy = policy
        self._critic = critic
        self._fetch_timeout_s = fetch_timeout_s
        self._own_logprobs = own_logprobs

    def assemble(
        self,
        refs: Sequence[ray.ObjectRef],
        outcomes: Sequence[RewardOutcome],
        stages: StageRefs,
        kl_coef: float,
        seed: int,
    ) -> ExperienceHandles:
        """The step's shards in the object store."""
        groups: list[RolloutGroup] = ray.get(list(refs), timeout=self._fetch_timeout_s)
        outputs = StageOutputs(
            logprobs=self._per_group(stages.logprobs, len(groups)),
            ref_logprobs=self._per_group(stages.ref_logprobs, len(groups)),
            estimates=self._per_group(stages.values, len(groups)),
        )
        experience = assemble(
            groups,
            outcomes,
            outputs,
            self._algorithm,
            kl_coef=kl_coef,
            own_logprobs=self._own_logprobs,
            mask_truncated=self._mask_truncated,
        )
        made = self._handles(experience, seed)
        self._pages.after_step()
        return made

    def journal(
        self, folder: str, step: int, settings: str, refs: Sequence[ray.ObjectRef], batch: StepBatch
    ) -> str | None:
        """Write the step's batch; the reason when the disk refuses it."""
        groups = tuple(ray.get(list(refs), timeout=self._fetch_timeout_s))
        try:
            write_batch(Path(folder), Batch(step, settings, batch.data, batch.filtered, groups, batch.outcomes))
        except OSError as error:
            return str(error)
        return None

    def _handles(self, experience: Experience, seed: int) -> ExperienceHandles:
        critic: tuple[Ref, ...] = ()
        if self._critic is not None and experience.critic is not None:
            critic = _put_shards(experience.critic, self._critic, seed)
        return ExperienceHandles(
            policy=_put_shards(experience.policy, self._policy, seed),
            critic=critic,
            advantages=Ref(ray.put(dict(experience.advantages))),
            metrics=experience.metrics,
            mean_kl=experience.mean_kl,
            num_sequences=experience.policy.tokens.num_sequences,
        )

    def _per_group(self, shards: TensorShards | None, num_groups: int) -> list[Any] | None:
        if shards is None:
            return None
        return per_group(shards, ray.get(list(shards.refs), timeout=self._fetch_timeout_s), num_groups)


class Assembler:
    """Facade over the assembler's actor: a loops.ExperienceAssembler."""

    def __init__(self, worker: WorkerGroup, timeout_s: float) -> None:
        self._worker = worker
        self._timeout_s = timeout_s

    @classmethod
    def start(
        cls,
        algorithm: OnlineAlgorithm,
        *,
        policy: ShardSettings,
        critic: ShardSettings | None,
        timeout_s: float,
        own_logprobs: bool = False,
        mask_truncated: bool = False,
        log_dir: str = "",
    ) -> Assembler:
        """Start the actor anywhere; it asks for no resources: it runs while the learners wait for it."""
        worker = WorkerGroup.spawn(
            AssemblerWorker,
            role="assembler",
            options=[{"num_cpus": 0}],
            env_vars=[RoleEnv(Device.cpu, threads=1, borrow=preloads.LEARNER[0]).variables()],
            args=[(algorithm, policy, critic, timeout_s, own_logprobs, mask_truncated, log_dir)],
        )
        return cls(worker, timeout_s)

    async def assemble(
        self,
        groups: Sequence[GroupHandle],
        outcomes: Sequence[RewardOutcome],
        *,
        logprobs: TensorShards | None,
        ref_logprobs: TensorShards | None,
        values: TensorShards | None,
        kl_coef: float,
        seed: int,
    ) -> ExperienceHandles:
        """See data/experience.py."""
        refs, stages = [g.ref for g in groups], StageRefs(logprobs, ref_logprobs, values)

        def call(actor: ActorHandle, _: int) -> ray.ObjectRef:
            return actor.assemble.remote(refs, outcomes, stages, kl_coef, seed)

        return (await self._worker.call(call, verb="advantages", timeout_s=self._timeout_s))[0]

    async def journal(self, folder: str, step: int, settings: str, batch: StepBatch) -> str | None:
        """Write the step's batch to `folder`; the reason when the disk refuses it."""
        refs, about = [g.ref for g in batch.groups], replace(batch, groups=())

        def call(actor: ActorHandle, _: int) -> ray.ObjectRef:
            return actor.journal.remote(folder, step, settings, refs, about)

        return (await self._worker.call(call, verb="journal", timeout_s=self._timeout_s))[0]

    def stop(self) -> None:
        """Kill the actor; shards it put and nobody fetched are lost with it."""
        self._worker.stop()


@dataclass(frozen=True, slots=True)
class ObjectReader:
    """Small reads back to the controller: a loops.TensorReader. Each raises HolderLost for what cannot be read."""

    timeout_s: float

    async def rollout_group(self, handle: GroupHandle) -> RolloutGroup:
        """One group."""
        return await self._get(handle.ref)

    async def per_group(self, shards: TensorShards, num_groups: int) -> list[Tensor]:
        """One flat tensor a group, in group order."""
        parts = await asyncio.gather(*(self._get(ref) for ref in shards.refs))
        return per_group(shards, parts, num_groups)

    async def advantages(self, handles: ExperienceHandles) -> Mapping[Any, float]:
        """Mean advantage of each trained sample by its key."""
        return await self._get(handles.advantages)

    async def _get(self, ref: Any) -> Any:
        """Raises HolderLost when the process that made it is gone, or it does not come in time."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(ref.future()), self.timeout_s)
        except (RayError, TimeoutError) as error:
            kind, cause = classify(error)
            why = cause or f"nothing came within {self.timeout_s:g} s"
            raise HolderLost(
                f"a result of this step could not be read, because the role that holds it {kind.value}: {why}; logs/ "
                "in the run folder has each role's last lines (too little memory is the usual cause"
                " of a death without a message)"
            ) from error


def per_group(shards: TensorShards, parts: Sequence[Sequence[Any]], num_groups: int) -> list[Any]:
    """Results by group number from results by rank. Raises ValueError when a group has none, or two."""
    found = {g: value for numbers, values in zip(shards.groups, parts, strict=True)
             for g, value in zip(numbers, values, strict=True)}  # fmt: skip
    numbers = [g for rank in shards.groups for g in rank]
    if sorted(numbers) != list(range(num_groups)):
        raise ValueError(f"a pass over {num_groups} groups answered for groups {sorted(numbers)}")
    return [found[g] for g in range(num_groups)]


def _put_shards(batch: Any, settings: ShardSettings, seed: int) -> tuple[Ref, ...]:
    shards = shard(
        batch,
        num_ranks=settings.num_ranks,
        units_per_update=settings.units_per_update,
        micro_batch_tokens=settings.micro_batch_tokens,
        seed=seed,
        epochs=settings.epochs,
    )
    return tuple(Ref(ray.put(s)) for s in shards)
