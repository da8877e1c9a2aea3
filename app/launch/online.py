"""Runs an online run: its roles to the loop, again where its learners were lost, and all of them down at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from raylign.app.launch.checkpoints import OnlineSaver, restore_online
from raylign.app.launch.export import export_step
from raylign.app.launch.fleets import scaling_hook
from raylign.app.launch.guard import GoBack, best_kept, went_back
from raylign.app.launch.online_roles import RoleBuilder, StartedRoles, old_logprobs_of
from raylign.app.launch.own_metrics import OwnMetrics
from raylign.app.launch.prompts import WeightedPrompts, open_prompts
from raylign.app.launch.rebuild import Rebuilds, rebuilt
from raylign.app.launch.rows import OnlineRows
from raylign.app.launch.samples_hook import SamplesHook
from raylign.app.launch.stage import Stage
from raylign.cluster.errors import HolderLost, RoleError
from raylign.conf.errors import Preempted
from raylign.conf.schema import OldLogprobs, RunConfig
from raylign.data.types import SamplingParams
from raylign.records.ledger import Ledger
from raylign.records.metrics_log import read_history
from raylign.reward.interfaces import ShapingState
from raylign.trainer.algorithms.base import OnlineAlgorithm
from raylign.trainer.algorithms.online import OnlineConfig
from raylign.trainer.checkpoint import Checkpoint
from raylign.trainer.loops.evaluate import Evaluator
from raylign.trainer.loops.held_out import HeldOutHook
from raylign.trainer.loops.hooks import LoopHook, OnlineProgress
from raylign.trainer.loops.ledger import LedgerHook
from raylign.trainer.loops.online import OnlineLoop, OnlineSettings
from raylign.trainer.loops.pass_at_k import PassEvaluator
from raylign.trainer.loops.scaling import ScalingHook
from raylign.trainer.loops.stream import StreamSettings
from raylign.trainer.workers.experience import ObjectReader


@dataclass(frozen=True, slots=True)
class OnlineOutcome:
    """What a finished run leaves to the summary."""

    progress: OnlineProgress
    held_out: HeldOutHook | None


async def run_online(
    stage: Stage, algorithm: OnlineAlgorithm, rows: OnlineRows, should_stop: Callable[[], bool]
) -> OnlineOutcome:
    """Train to the last step. Raises what the roles, the data and the loop raise; every actor is gone afterwards.

    A learner that dies or hangs costs the steps since the last checkpoint: they are done again on the same samples.
    """
    settings = _online_config(stage.config.algorithm)
    rebuilds = Rebuilds(stage.config.cluster.max_rebuilds, stage.progress.notice)
    with ExitStack() as stack:
        builder = RoleBuilder(stage, algorithm, settings, rows.template, stack)
        parts = await builder.start()
        scaling = scaling_hook(stage, parts.rollouts, builder.late_worker, parts.reward, builder.rewards.late, stack)
        attempt = _Attempt(stage, settings, rows, should_stop, scaling, parts.reward.state, stack)
        found = stage.resumed
        while True:
            try:
                return await attempt.run(parts, found)
            except GoBack as sign:
                raise await _went_back(stage, parts, sign) from sign
            except (RoleError, HolderLost) as error:
                rebuilds.allow(error, step=stage.newest_step())
            parts = await rebuilt(partial(builder.rebuild, parts), rebuilds, step=stage.newest_step())
            found = stage.go_back()


async def _went_back(stage: Stage, parts: StartedRoles, sign: GoBack) -> Preempted:
    """The policy of the best checkpoint, exported; how the run ends."""
    await parts.for_loop().cards.learners()

    async def restore(found: Checkpoint) -> None:
        await restore_online(found, parts.policy, parts.critic, parts.reward)

    return await went_back(stage, sign.alert, restore=restore, export=parts.policy.export)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One life of a run's learners: from a checkpoint to the end, or to their death."""

    stage: Stage
    settings: OnlineConfig
    rows: OnlineRows
    should_stop: Callable[[], bool]
    scaling: ScalingHook
    unshaped: ShapingState  # the reward statistics before the first step
    stack: ExitStack  # of what must end with the run

    async def run(self, parts: StartedRoles, found: Checkpoint | None) -> OnlineOutcome:
        """As `run_online`, without a second chance. `found`: what to go on from; None: the start."""
        stage, config, rows = self.stage, self.stage.config, self.rows
        progress = OnlineProgress(0, self.settings.initial_kl(), {})
        if found is None:
            parts.reward.restore(self.unshaped)
        else:
            progress = await restore_online(found, parts.policy, parts.critic, parts.reward)
        position = parts.journal.resume(progress.step, stage.progress.notice) or progress.data
        prompts = open_prompts(rows.train, config, position)
        hook = _held_out_hook(stage, parts, rows, self.stack)
        serving = read_history(stage.folder.metrics).latest()
        hooks: list[LoopHook] = [
            self.scaling,
            LedgerHook(Ledger(stage.folder.ledger), lambda: parts.rollouts.counts().serving, serving),
            *([prompts] if isinstance(prompts, WeightedPrompts) else []),
            *([hook] if hook else []),
            SamplesHook(
                ObjectReader(config.cluster.step_timeout_s),
                stage.folder,
                stage.tracker,
                every=config.tracking.samples_every,
            ),
        ]
        loop = OnlineLoop(
            replace(parts.for_loop(), fleet=self.scaling),
            _loop_settings(stage, self.settings, rows, vocab_size=await parts.policy.vocab_size()),
            prompts=prompts,
            progress=progress,
            hooks=hooks,
            sink=stage.steps,
            saver=OnlineSaver(stage.saving(), parts.policy, parts.critic, parts.reward, best_kept(stage)),
            should_stop=self.should_stop,
        )
        stage.progress.phase("training")
        finished = await loop.run()
        await export_step(stage.folder.export, finished.step, parts.policy.export, stage.model_card())
        return OnlineOutcome(finished, hook)


def _online_config(config: object) -> OnlineConfig:
    assert isinstance(config, OnlineConfig), f"{config!r} is not an online algorithm's"
    return config


def _loop_settings(stage: Stage, settings: OnlineConfig, rows: OnlineRows, *, vocab_size: int) -> OnlineSettings:
    config = stage.config
    return OnlineSettings(
        num_steps=config.num_steps,
        stream=StreamSettings(
            prompts_per_step=config.rollout.prompts_per_step,
            samples_per_prompt=config.rollout.samples_per_prompt,
            sampling=SamplingParams(
                temperature=config.rollout.temperature,
                max_new_tokens=config.rollout.max_new_tokens,
                seed=config.seed,
                stop=tuple(config.rollout.stop),
                stop_token_ids=_stop_token_ids(config, rows),
            ),
            max_staleness=config.rollout.max_staleness,
            chunks=config.rollout.scoring_chunks,
            max_refills=config.rollout.max_refills,
        ),
        recompute_logprobs=old_logprobs_of(config, settings) is OldLogprobs.recompute,
        max_failed_fraction=config.reward.max_failed_fraction,
        save_every=config.checkpoint.every,
        replace_timeout_s=config.cluster.start_timeout_s,
        seed=config.seed,
        vocab_size=vocab_size,
    )


def _stop_token_ids(config: RunConfig, rows: OnlineRows) -> tuple[int, ...]:
    return tuple(sorted({*rows.stop_token_ids, *config.rollout.stop_token_ids}))


def _held_out_hook(stage: Stage, parts: StartedRoles, rows: OnlineRows, stack: ExitStack) -> HeldOutHook | None:
    if rows.held_out is None:
        return None
    config = stage.config.evaluation
    own = OwnMetrics.start(config, stage.progress.notice) if config.metrics else None
    if own is not None:
        stack.callback(own.stop)
    evaluator = Evaluator(
        rollouts=parts.rollouts,
        reward=parts.reward,
        reference=parts.reference if config.fluency else None,
        reader=ObjectReader(stage.config.cluster.step_timeout_s),
        prompts=rows.held_out.prompts[: config.prompts],
        sampling=SamplingParams(
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            stop=tuple(stage.config.rollout.stop),
            stop_token_ids=_stop_token_ids(stage.config, rows),
        ),
        own=own,
    )
    passes = PassEvaluator(
        rollouts=parts.rollouts,
        reward=parts.reward,
        prompts=evaluator.prompts,
        sampling=replace(evaluator.sampling, temperature=stage.config.rollout.temperature),
        answers=config.samples,
        component=config.gold,
        score=config.pass_score,
    )
    return HeldOutHook(
        evaluator,
        stage.folder.eval,
        every=config.every,
        gold=config.gold,
        passes=passes if config.samples else None,
    )
