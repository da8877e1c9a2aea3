"""Builds the roles of an offline run, hands them to the loop, and takes them down whatever happens.

One path for every offline algorithm: what rows it reads and what model it trains follow from its declared needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

from raylign.app.launch.checkpoints import OfflineRunSaver, restore_offline
from raylign.app.launch.demand import role_requests
from raylign.app.launch.guard import GoBack, went_back
from raylign.app.launch.rebuild import Rebuilds, rebuilt
from raylign.app.launch.reference import with_reference
from raylign.app.launch.rows import TRAIN, OfflineRows
from raylign.app.launch.stage import Stage
from raylign.cluster.errors import HolderLost, RoleError
from raylign.cluster.reserve import Reservation
from raylign.conf.derive import offline_steps
from raylign.conf.schema import RunConfig
from raylign.data.row_feed import FeedSettings, RowFeed
from raylign.data.row_kinds import TrainRows
from raylign.trainer.algorithms.base import ModelKind, OfflineAlgorithm, OfflineNeeds, Role
from raylign.trainer.checkpoint import Checkpoint
from raylign.trainer.loops.best import BestRule
from raylign.trainer.loops.offline import OfflineLoop, OfflineProgress, OfflineSettings
from raylign.trainer.workers.feeder import Feeder
from raylign.trainer.workers.learner_group import LearnerGroup
from raylign.trainer.workers.offline_model import OfflineModelGroup
from raylign.trainer.workers.specs import LearnerSpec, PolicySpec, ScalarSpec


async def run_offline(
    stage: Stage, algorithm: OfflineAlgorithm, read: OfflineRows, should_stop: Callable[[], bool]
) -> OfflineProgress:
    """Train on rows to the last step. Raises what the roles, the data and the loop raise."""
    config = stage.config
    rows = dict(read.sets)
    if Role.REFERENCE in algorithm.roles:
        rows = await with_reference(stage, rows, read.tokenizer)
    num_steps = config.num_steps or offline_steps(
        len(rows[TRAIN]), config.algorithm.units_per_update, config.num_epochs
    )
    stage.progress.expect(num_steps)
    with ExitStack() as stack:
        reservation, cores = stage.reserve(role_requests(config, frozenset({Role.POLICY})))
        stack.callback(reservation.release)
        spec = model_spec(config, algorithm.needs, num_steps, read.template)
        rebuilds = Rebuilds(config.cluster.max_rebuilds, stage.progress.notice)
        feeder = _start_feeder(stage, stack)
        found, group = stage.resumed, await _start_model(stage, algorithm, spec, reservation, cores, stack)
        while True:
            try:
                return await _train(stage, group, feeder, rows, num_steps, found, should_stop)
            except GoBack as sign:
                latest = stage.store().latest()
                best = latest.state.best.get("step") if latest else None
                raise await went_back(
                    stage,
                    sign.alert,
                    restore=lambda checkpoint, group=group: restore_offline(checkpoint, group),  # type: ignore[misc]
                    export=group.export,
                    best=best if isinstance(best, int) else None,
                ) from sign
            except (RoleError, HolderLost) as error:
                rebuilds.allow(error, step=stage.newest_step())
            group.stop()
            feeder.stop()
            feeder = _start_feeder(stage, stack)
            start = partial(_start_model, stage, algorithm, spec, reservation, cores, stack)
            group = await rebuilt(start, rebuilds, step=stage.newest_step())
            found = stage.go_back()


async def _train(
    stage: Stage,
    group: OfflineModelGroup,
    feeder: Feeder,
    rows: Mapping[str, TrainRows],
    num_steps: int,
    found: Checkpoint | None,
    should_stop: Callable[[], bool],
) -> OfflineProgress:
    """From `found`, or the start, to the last step or the loss of a rank."""
    config = stage.config
    progress = OfflineProgress(0, {})
    if found is not None:
        progress = await restore_offline(found, group)
    best = config.evaluation.best
    await feeder.begin(_feed(config, rows, progress))
    loop = OfflineLoop(
        feeder,
        group,
        OfflineSettings(
            num_steps,
            config.evaluation.every,
            config.checkpoint.every,
            BestRule(best, config.evaluation.best_is) if best else None,
        ),
        progress=progress,
        sink=stage.steps,
        saver=OfflineRunSaver(stage.saving(), group, stage.folder, stage.model_card()),
        should_stop=should_stop,
    )
    stage.progress.phase("training")
    return await loop.run()


def _start_feeder(stage: Stage, stack: ExitStack) -> Feeder:
    """Not awaited: its process starts while the model is loaded. The stack takes it down."""
    feeder = Feeder(timeout_s=stage.config.cluster.step_timeout_s)
    stack.callback(feeder.stop)
    return feeder


async def _start_model(
    stage: Stage,
    algorithm: OfflineAlgorithm,
    spec: LearnerSpec,
    reservation: Reservation,
    cores: Mapping[str, int],
    stack: ExitStack,
) -> OfflineModelGroup:
    """The ranks of the model in training, placed; the stack takes them down."""
    settings = stage.group_settings("policy", stage.config.policy)
    starting = LearnerGroup.start(spec, settings, reservation=reservation, cores=cores)
    learners = await stage.ready("policy", starting)
    stack.callback(learners.stop)
    stage.watch_cards(learners.actors)
    return OfflineModelGroup(learners, algorithm)


def model_spec(config: RunConfig, needs: OfflineNeeds, num_steps: int, chat_template: str = "") -> LearnerSpec:
    """The model in training by its head. `chat_template`: of its exports; empty: the model's own."""
    policy, cluster = config.policy, config.cluster
    if needs.model is ModelKind.CAUSAL:
        return PolicySpec(
            policy.model, policy, cluster.device, num_steps, cluster.step_timeout_s, config.seed, chat_template
        )
    return ScalarSpec(
        policy.model,
        policy,
        cluster.device,
        num_steps,
        cluster.step_timeout_s,
        new_head_seed=config.seed,
        adapter_seed=config.seed,
        chat_template=chat_template,
    )


def _feed(config: RunConfig, rows: Mapping[str, TrainRows], progress: OfflineProgress) -> RowFeed:
    settings = FeedSettings(
        num_ranks=config.policy.num_shards,
        rows_per_update=config.algorithm.units_per_update,
        micro_batch_tokens=config.policy.micro_batch_tokens,
        seed=config.seed,
        shuffle=config.data.shuffle,
    )
    held_out = {name: one for name, one in rows.items() if name != TRAIN}
    return RowFeed(rows[TRAIN], held_out, settings, progress.data)
