"""Online reinforcement learning: one loop for PPO, GRPO, RLOO and REINFORCE++.

    prompts ──► rollouts ──┬─► rewards ─────────────┐
       ▲        (vLLM)     ├─► policy log-probs ────┤
       │                   ├─► reference log-probs ─┼──► advantages ──┬─► policy update
       │                   └─► critic values ───────┘   (assembler)   └─► critic update
       │                                                                      │
       └────────── engines serve version v + 1 ◄── publish and verify ◄───────┘

Who waits for whom: rewards and reference log-probs are asked for while the step's last rollouts are still made
(trainer/loops/stream.py); the passes of the two learners run side by side, and so do their updates; the rollouts of
step s wait for the verified publication of version s - 1 - max_staleness. Where learners and engines share cards they
take turns (trainer/loops/time_sharing.py). The loop holds handles and small numbers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from raylign.cluster.errors import RoleError
from raylign.conf.errors import Preempted, RunFailed, Stopped
from raylign.data.types import RewardFailure, RewardOutcome
from raylign.rollout.interfaces import EngineDead, NoWorkerLeft
from raylign.trainer.loops.clock import PhaseClock
from raylign.trainer.loops.hooks import CheckpointSaver, LoopHook, MetricSink, OnlineProgress, StepReport, due
from raylign.trainer.loops.interfaces import (
    BatchJournal,
    CriticGroup,
    ExperienceAssembler,
    ExperienceHandles,
    GroupHandle,
    PolicyGroup,
    PromptSource,
    Publisher,
    PublishResult,
    ReferenceGroup,
    RewardPool,
    RolloutPool,
    TensorShards,
    UpdateResult,
)
from raylign.trainer.loops.publish import PublishError
from raylign.trainer.loops.stream import RolloutStream, StepRollouts, StreamSettings
from raylign.trainer.loops.time_sharing import OWN_CARDS, CardTurns
from raylign.trainer.loops.watch import LearningWatch

T = TypeVar("T")
LOOK_S = 1.0
"""How often a wait for rollouts looks whether a rollout worker is left."""


class LostWorkers(Protocol):
    """trainer.loops.scaling.ScalingHook."""

    def lost(self) -> bool: ...
    def replace(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class OnlineRoles:
    """Everything the loop talks to. The optional roles are the ones an algorithm may not ask for."""

    rollouts: RolloutPool
    policy: PolicyGroup
    reward: RewardPool
    assembler: ExperienceAssembler
    publisher: Publisher
    journal: BatchJournal
    critic: CriticGroup | None
    reference: ReferenceGroup | None
    cards: CardTurns = OWN_CARDS
    fleet: LostWorkers | None = None  # None: no rollout worker is replaced


@dataclass(frozen=True, slots=True)
class OnlineSettings:
    """What the loop itself needs to know."""

    num_steps: int
    stream: StreamSettings
    recompute_logprobs: bool
    max_failed_fraction: float
    save_every: int  # steps; 0: only at the end
    seed: int
    vocab_size: int = 0  # of the policy; 0: its entropy is not watched
    replace_timeout_s: float = 0.0  # for a worker to be there again where none is left to publish to


class OnlineLoop:
    """Runs steps `progress.step + 1 .. num_steps`.

    A step's line in metrics.jsonl is written before its checkpoint, so a resumed run never lacks one.
    Raises RunFailed when a number that training depends on is missing or not finite, and Preempted, after a save, when
    `should_stop` says so. Where no rollout worker is left the loop waits for another and gives it the present weights.
    Raises Stopped when none comes: another start may find room for new ones.
    """

    def __init__(
        self,
        roles: OnlineRoles,
        settings: OnlineSettings,
        *,
        prompts: PromptSource,
        progress: OnlineProgress,
        hooks: Sequence[LoopHook],
        sink: MetricSink,
        saver: CheckpointSaver,
        should_stop: Callable[[], bool],
    ) -> None:
        self._roles = roles
        self._settings = settings
        self._stream = RolloutStream(
            roles.rollouts, roles.reward, roles.reference, prompts, settings.stream, roles.journal
        )
        self._progress = progress
        self._hooks = hooks
        self._sink = sink
        self._saver = saver
        self._should_stop = should_stop
        self._watch = LearningWatch("policy", lr_key="policy.optim.lr", vocab_size=settings.vocab_size)

    async def run(self) -> OnlineProgress:
        """Train to the last step and return where the run stands."""
        try:
            return await self._run()
        except NoWorkerLeft as error:
            raise Stopped(f"step {self._progress.step + 1}: {error}") from error
        finally:
            await self._stream.close()
            await self._saver.close()

    async def _run(self) -> OnlineProgress:
        await self._publish(self._progress.step)
        before = [await hook.on_start(self._progress) for hook in self._hooks]
        if any(before):
            self._sink.log(self._progress.step, _merge(before))
        while self._progress.step < self._settings.num_steps:
            report = await self._named_step(self._progress.step + 1)
            self._progress = report.progress
            last = report.progress.step == self._settings.num_steps
            extra = [await hook.after_step(report, last=last) for hook in self._hooks]
            self._sink.log(report.progress.step, _merge([report.metrics(), *extra]))
            self._watch.check(report.progress.step, report.metrics())  # a destroyed policy replaces no checkpoint
            stopping = self._should_stop() and not last
            await self._saver.check()
            if last or stopping or due(report.progress.step, self._settings.save_every):
                refused = await self._saver.save(report.progress, wait=last or stopping)
                if refused and (last or stopping):
                    raise Stopped(f"step {report.progress.step} is trained and could not be saved: {refused}")
            if stopping:
                raise Preempted(f"stopped on request after step {report.progress.step}; its state is saved")
        return self._progress

    async def _named_step(self, step: int) -> StepReport:
        """As `_step`; whatever role fails, the message says in which step."""
        try:
            return await self._step(step)
        except NoWorkerLeft:
            raise
        except EngineDead as error:
            raise RunFailed(f"rollout, step {step}: {error}") from error
        except (RoleError, PublishError) as error:
            error.problems = (f"step {step}: {error}",)
            raise

    async def _step(self, step: int) -> StepReport:
        roles, settings, clock = self._roles, self._settings, PhaseClock()
        kl = self._progress.kl
        with clock.phase("rollout_wait"):
            rollouts = await self._with_workers(self._stream.take(step, last=settings.num_steps))
        groups = rollouts.batch.groups
        outcomes = roles.reward.shape(groups, rollouts.batch.outcomes)
        self._check_rewards(step, outcomes)
        with clock.phase("scoring"):
            await roles.cards.learners()
            logprobs, values = await self._journaled(step, rollouts, self._passes(groups, clock))
        with clock.phase("advantages"):
            experience = await roles.assembler.assemble(
                groups,
                outcomes,
                logprobs=logprobs,
                ref_logprobs=rollouts.ref_logprobs,
                values=values,
                kl_coef=kl.coef,
                seed=settings.seed * 1_000_003 + step,
            )
        with clock.phase("updates"):
            policy, critic = await self._update(experience, kl.coef, clock)
        for role, result in (("critic", critic), ("policy", policy)):  # a broken critic breaks the policy's advantages
            if result is not None:
                _check_update(role, step, result)
        with clock.phase("sync"):
            published = await self._publish(step)
        kl = kl if math.isnan(experience.mean_kl) else kl.update(experience.mean_kl, experience.num_sequences)
        return StepReport(
            progress=replace(self._progress, step=step, kl=kl, data=rollouts.batch.data),
            groups=groups,
            outcomes=outcomes,
            experience=experience,
            policy=policy,
            critic=critic,
            published=published,
            seconds={**rollouts.seconds, **clock.seconds()},
            filtered=rollouts.batch.filtered,
            ready=self._stream.ready,
        )

    async def _with_workers(self, rollouts: Coroutine[Any, Any, StepRollouts]) -> StepRollouts:
        """`rollouts`; where no worker is left to make them, another is started and given the present weights."""
        waiting = asyncio.create_task(rollouts)
        try:
            while not (await asyncio.wait([waiting], timeout=LOOK_S))[0]:
                if self._roles.fleet and self._roles.fleet.replace():
                    await self._publish(self._progress.step)
            return waiting.result()
        finally:
            waiting.cancel()

    async def _publish(self, version: int) -> PublishResult:
        """To the workers there are; where none is left, to the next that comes within `replace_timeout_s`."""
        deadline, fleet = time.monotonic() + self._settings.replace_timeout_s, self._roles.fleet
        while True:
            try:
                return await self._roles.publisher.publish(version)
            except NoWorkerLeft:
                while not (fleet and fleet.replace()):
                    if not (fleet and fleet.lost()) or time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(LOOK_S)

    async def _journaled(self, step: int, rollouts: StepRollouts, passes: Awaitable[T]) -> T:
        """`passes`, while the step's batch goes to disk; it is there afterwards, also where the passes fail."""
        if rollouts.journaled:
            return await passes
        writing = asyncio.create_task(self._roles.journal.write(step, rollouts.batch))
        try:
            return await passes
        finally:
            await writing

    async def _passes(
        self, groups: Sequence[GroupHandle], clock: PhaseClock
    ) -> tuple[TensorShards | None, TensorShards | None]:
        """What the weights in training say of the samples: the policy's log-probs and the critic's values."""
        roles, temperature = self._roles, self._settings.stream.sampling.temperature

        async def values() -> TensorShards | None:
            return await roles.critic.values(groups) if roles.critic else None

        async def old_logprobs() -> TensorShards | None:
            wanted = self._settings.recompute_logprobs
            return await roles.policy.logprobs(groups, temperature=temperature) if wanted else None

        return await asyncio.gather(clock.timed("old_logprobs", old_logprobs()), clock.timed("values", values()))

    async def _update(
        self, experience: ExperienceHandles, kl_coef: float, clock: PhaseClock
    ) -> tuple[UpdateResult, UpdateResult | None]:
        async def critic() -> UpdateResult | None:
            return await self._roles.critic.update(experience.critic) if self._roles.critic else None

        return await asyncio.gather(
            clock.timed("policy_update", self._roles.policy.update(experience.policy, kl_coef=kl_coef)),
            clock.timed("critic_update", critic()),
        )

    def _check_rewards(self, step: int, outcomes: Sequence[RewardOutcome]) -> None:
        failures = [o for o in outcomes if isinstance(o, RewardFailure)]
        if len(failures) > self._settings.max_failed_fraction * len(outcomes):
            raise RunFailed(
                f"reward, step {step}: {len(failures)} of {len(outcomes)} rewards failed, more than "
                f"reward.max_failed_fraction={self._settings.max_failed_fraction} allows; first: {failures[0].reason}"
            )


def _merge(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: value for part in parts for name, value in part.items()}


def _check_update(role: str, step: int, result: UpdateResult) -> None:
    """A step trained on nothing, or on a number that is not one, ends the run rather than spoiling it."""
    if result.steps_applied == 0:
        raise RunFailed(
            f"{role}, step {step}: no optimizer step was applied ({result.steps_skipped} skipped: the gradient was "
            f"not finite); lower {role}.optim.lr or look at the rewards of this step"
        )
    for name in ("loss", "grad_norm"):
        if not math.isfinite(result.metrics.get(name, 0.0)):
            raise RunFailed(f"{role}, step {step}: {name} is {result.metrics[name]}; the weights were not published")
