"""Starts the roles of an online run, side by side, and starts its learners again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

from raylign.app.launch.demand import reference_is_shared, role_requests, wanted_roles
from raylign.app.launch.environment import run_environment
from raylign.app.launch.environments import engine_environment
from raylign.app.launch.fleets import LatePlaces
from raylign.app.launch.rebuild import step_settings
from raylign.app.launch.reference import reference_spec
from raylign.app.launch.rewards import RewardSide
from raylign.app.launch.stage import Stage
from raylign.cluster.errors import RoleError
from raylign.cluster.placement import Slot
from raylign.cluster.reserve import Place
from raylign.conf.derive import adapters_alone
from raylign.conf.schema import (
    Device,
    JournalKeep,
    LearnerConfig,
    OldLogprobs,
    PlacementStrategy,
    Precision,
    RolloutConfig,
    RunConfig,
    SyncTransport,
)
from raylign.records.manifest import read_manifest
from raylign.reward.pool import RewardPool
from raylign.rollout.pool import QUEUE_FACTOR, RolloutPool
from raylign.rollout.worker import RayWorkerHandle, WorkerSpec, spawn_worker
from raylign.trainer.algorithms.base import ActorCriticAlgorithm, OnlineAlgorithm, Role
from raylign.trainer.algorithms.online import OnlineConfig
from raylign.trainer.loops.canary_limit import EXACT, ROUNDED, CanaryLimit
from raylign.trainer.loops.online import OnlineRoles
from raylign.trainer.loops.publish import WeightPublisher
from raylign.trainer.loops.time_sharing import OWN_CARDS, TimeSharing
from raylign.trainer.loops.transport import Broadcast
from raylign.trainer.workers.critic import CriticGroup
from raylign.trainer.workers.experience import Assembler, ShardSettings
from raylign.trainer.workers.journal import UNSAVED_STEPS, RunJournal
from raylign.trainer.workers.learner_group import LearnerGroup
from raylign.trainer.workers.policy import PolicyGroup
from raylign.trainer.workers.reference import ReferenceGroup
from raylign.trainer.workers.specs import PolicySpec, ScalarSpec


@dataclass(frozen=True, slots=True)
class StartedRoles:
    """What the builder started, by what each really is: the loop knows the same ones by its Protocols."""

    rollouts: RolloutPool
    policy: PolicyGroup
    reward: RewardPool
    assembler: Assembler
    publisher: WeightPublisher
    journal: RunJournal
    critic: CriticGroup | None
    reference: ReferenceGroup | None
    cards: TimeSharing | None  # where engines and learners take turns

    def for_loop(self) -> OnlineRoles:
        """As the loop holds them."""
        return OnlineRoles(
            self.rollouts,
            self.policy,
            self.reward,
            self.assembler,
            self.publisher,
            self.journal,
            self.critic,
            self.reference,
            self.cards or OWN_CARDS,
        )


class RoleBuilder:
    """Starts every role the run needs, side by side; what has been started is stopped by the stack."""

    def __init__(
        self, stage: Stage, algorithm: OnlineAlgorithm, settings: OnlineConfig, template: str, stack: ExitStack
    ) -> None:
        self._stage = stage
        self._config = stage.config
        self._algorithm = algorithm
        self._settings = settings
        self._template = template
        self._stack = stack
        today = read_manifest(stage.folder.manifest).today
        self._environment = run_environment(stage.config, template, today)
        self._roles = wanted_roles(stage.config, algorithm.roles)
        self._reservation, self._cores = stage.reserve(role_requests(stage.config, self._roles))
        stack.callback(self._reservation.release)
        self._late = LatePlaces(stage, self._reservation)
        self.rewards = RewardSide(stage, self._reservation, self._cores, self._late.reward)

    async def start(self) -> StartedRoles:
        """Every role ready to serve. Raises RoleError, EngineDead or ModelLoadError naming what did not start."""
        cards, shared_pool = await self._shared_cards()
        pool, reward, policy, critic, reference = await asyncio.gather(
            _given(shared_pool) if shared_pool else self._stage.ready("rollout", self._start_rollouts()),
            self._stage.ready("reward", self.rewards.start(self._stack)),
            self._stage.ready("policy", self._start_policy()),
            self._optional(Role.CRITIC, self._start_critic),
            self._optional(Role.REFERENCE, self._start_reference),
        )
        return self._assembled(pool, reward, policy, critic, reference, cards)

    async def _shared_cards(self) -> tuple[TimeSharing | None, RolloutPool | None]:
        """Where cards are shared, engines come first: they measure what is free, and sleep before a learner comes."""
        config = self._config
        if config.cluster.placement is not PlacementStrategy.colocated:
            return None, None
        pool = await self._stage.ready("rollout", self._start_rollouts())
        cards = TimeSharing(pool, timeout_s=config.sync.timeout_s)
        await cards.clear()
        if config.cluster.device is Device.cpu:
            self._stage.progress.notice(
                "engines on CPU cannot give memory back: they take turns with the learners, and keep theirs"
            )
        return cards, pool

    async def rebuild(self, parts: StartedRoles) -> StartedRoles:
        """The same run with new learners; rollout workers and rewards stay. Raises as `start`."""
        parts.policy.stop()
        parts.assembler.stop()
        if parts.critic is not None:
            parts.critic.stop()
        reference, lost = parts.reference, parts.reference is not None and parts.reference.broken
        if reference is not None and lost:
            reference.stop()
        if parts.cards is not None:
            await parts.cards.clear()
        starting = (
            asyncio.ensure_future(self._stage.ready("policy", self._start_policy())),
            asyncio.ensure_future(self._optional(Role.CRITIC, self._start_critic)),
            asyncio.ensure_future(self._optional(Role.REFERENCE, self._start_reference) if lost else _nothing()),
        )
        try:
            policy, critic, started = await asyncio.gather(*starting)
        except RoleError:
            await asyncio.wait(starting, timeout=self._config.cluster.start_timeout_s)
            for role in starting:
                if role.done() and role.exception() is None and (group := role.result()) is not None:
                    group.stop()  # another start needs its room
            raise
        reference = started if lost else reference
        return self._assembled(parts.rollouts, parts.reward, policy, critic, reference, parts.cards)

    def _assembled(
        self,
        pool: RolloutPool,
        reward: RewardPool,
        policy: PolicyGroup,
        critic: CriticGroup | None,
        reference: ReferenceGroup | None,
        cards: TimeSharing | None,
    ) -> StartedRoles:
        """The roles that are there, and those that only join them."""
        config = self._config
        if reference_is_shared(config, self._roles):
            reference = ReferenceGroup(policy.learners, without_adapters=True)
        assembler = Assembler.start(
            self._algorithm,
            policy=self._shards(config.policy),
            critic=self._shards(config.critic) if critic else None,
            timeout_s=config.cluster.step_timeout_s,
            own_logprobs=old_logprobs_of(config, self._settings) is OldLogprobs.update,
            mask_truncated=self._settings.mask_truncated,
            log_dir=str(self._stage.folder.logs),
        )
        self._stack.callback(assembler.stop)
        if cards is not None:
            cards.admit(policy.learners, *([critic.learners] if critic else []))
        publisher = WeightPublisher(
            policy,
            pool.members,
            timeout_s=config.sync.timeout_s,
            canary_limit=_canary_limit(config),
            cards=cards,
            adapters_only=adapters_alone(config),
            whole_weights=Broadcast(policy) if config.sync.transport is SyncTransport.broadcast else None,
        )
        return StartedRoles(
            rollouts=pool,
            policy=policy,
            reward=reward,
            assembler=assembler,
            publisher=publisher,
            journal=self._journal(assembler),
            critic=critic,
            reference=reference,
            cards=cards,
        )

    def _journal(self, assembler: Assembler) -> RunJournal:
        checkpoint = self._config.checkpoint
        kept_for_ever = checkpoint.every == 0 and checkpoint.journal is JournalKeep.needed
        most = UNSAVED_STEPS if kept_for_ever else None
        return RunJournal(self._stage.folder.journal, assembler, step_settings(self._config), most=most)

    async def _optional(self, role: Role, start: Callable[[], Awaitable[Any]]) -> Any:
        wanted = role in self._roles and not (role is Role.REFERENCE and reference_is_shared(self._config, self._roles))
        return await self._stage.ready(role.value, start()) if wanted else None

    async def _start_policy(self) -> PolicyGroup:
        config = self._config
        spec = PolicySpec(
            config.policy.model,
            config.policy,
            config.cluster.device,
            self._optimizer_steps(),
            config.cluster.step_timeout_s,
            adapter_seed=config.seed,
            chat_template=self._template,
        )
        learners = await self._learners("policy", config.policy, spec)
        return PolicyGroup(
            learners,
            self._algorithm,
            config.sync,
            temperature=config.rollout.temperature,
            entropy_gradient=self._settings.entropy_coef > 0,
            ranks_per_worker=config.rollout.tensor_parallel_size,
        )

    async def _start_critic(self) -> CriticGroup:
        config = self._config
        spec = ScalarSpec(
            config.critic.model or config.reward.model,
            config.critic,
            config.cluster.device,
            self._optimizer_steps(),
            config.cluster.step_timeout_s,
            new_head_seed=config.seed,  # used only where the folder has no head
            adapter_seed=config.seed,
        )
        # Only an algorithm with a value loss asks for this role.
        algorithm = cast("ActorCriticAlgorithm", self._algorithm)
        return CriticGroup(await self._learners("critic", config.critic, spec), algorithm)

    async def _start_reference(self) -> ReferenceGroup:
        config = self._config
        spec = reference_spec(config)
        return ReferenceGroup(await self._learners("reference", config.reference, spec))

    async def _learners(self, role: str, config: Any, spec: Any) -> LearnerGroup:
        settings = self._stage.group_settings(role, config)
        learners = await LearnerGroup.start(spec, settings, reservation=self._reservation, cores=self._cores)
        self._stack.callback(learners.stop)
        self._stage.watch_cards(learners.actors)
        return learners

    async def _start_rollouts(self) -> RolloutPool:
        config = self._config
        handles = [self._spawn_worker(slot.rank) for slot in self._reservation.placement.of("rollout")]
        await asyncio.gather(*(handle.start(config.cluster.start_timeout_s) for handle in handles))
        given = config.rollout.max_concurrent * QUEUE_FACTOR
        return RolloutPool(handles, max_concurrent=given, timeout_s=self._rollout_settings().timeout_s)

    def _rollout_settings(self) -> RolloutConfig:
        """Steps that are made ahead share the engines: each may take as long as all of them together."""
        rollout = self._config.rollout
        return replace(rollout, timeout_s=rollout.timeout_s * (1 + rollout.max_staleness))

    def late_worker(self, index: int) -> RayWorkerHandle:
        """One more for a live run (not awaited)."""
        return self._spawn(index, self._reservation.placement.of("rollout")[0], self._late.rollout())

    def _spawn_worker(self, index: int) -> RayWorkerHandle:
        slot = self._reservation.placement.of("rollout")[index]
        return self._spawn(index, slot, self._reservation.place(slot))

    def _spawn(self, index: int, slot: Slot, place: Place) -> RayWorkerHandle:
        config, placement, local = self._config, self._reservation.placement, self._stage.session.local
        env = engine_environment(config, placement, slot, self._cores, local=local)
        handle = spawn_worker(
            WorkerSpec(
                f"rollout/{index}",
                config.policy.model,
                self._rollout_settings(),
                config.sync,
                config.cluster.device,
                config.seed,
                str(self._stage.folder.logs),
                shares_cards=config.cluster.placement is PlacementStrategy.colocated,
                environment=self._environment,
            ),
            place=place,
            env_vars=env,
        )
        self._stack.callback(handle.kill)
        self._stage.watch_cards([handle.actor])
        return handle

    def _shards(self, config: LearnerConfig) -> ShardSettings:
        return ShardSettings(
            num_ranks=config.num_shards,
            micro_batch_tokens=config.micro_batch_tokens,
            units_per_update=self._settings.units_per_update,
            epochs=self._settings.passes_per_step,
        )

    def _optimizer_steps(self) -> int:
        config = self._config
        sequences = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
        windows = -(-sequences // self._settings.units_per_update)
        return config.num_steps * windows * self._settings.passes_per_step


async def _given(pool: RolloutPool) -> RolloutPool:
    """A role that has been started before the others."""
    return pool


async def _nothing() -> None:
    """A role that need not be started again."""
    return None


def _canary_limit(config: RunConfig) -> CanaryLimit:
    exact = config.policy.precision is Precision.float32 and config.rollout.precision is Precision.float32
    return CanaryLimit(config.sync.max_canary_gap, EXACT if exact else ROUNDED)


def old_logprobs_of(config: RunConfig, settings: OnlineConfig) -> OldLogprobs:
    return settings.old_logprobs_source(config.rollout.prompts_per_step * config.rollout.samples_per_prompt)
