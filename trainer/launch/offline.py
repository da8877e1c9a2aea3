"""Builds the roles of an offline run, hands them to the loop, and takes them down whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from data.pair_feed import FeedSettings, PairFeed
from data.preferences import PairSet, load_pairs
from data.tokenize import load_tokenizer
from trainer.algorithms.base import PairwiseAlgorithm
from trainer.algorithms.rm import RMConfig
from trainer.launch.checkpoints import OfflineRunSaver, restore_offline
from trainer.launch.demand import role_requests
from trainer.launch.stage import Stage
from trainer.loops.offline import OfflineLoop, OfflineProgress, OfflineSettings
from trainer.workers.feeder import Feeder
from trainer.workers.learner_group import LearnerGroup
from trainer.workers.reward_model import RewardModelGroup
from trainer.workers.specs import ScalarSpec


async def run_pairwise(stage: Stage, algorithm: PairwiseAlgorithm, should_stop: Callable[[], bool]) -> OfflineProgress:
    """Train a scalar model on preference pairs. Raises what the roles, the data and the loop raise."""
    config = stage.config
    assert isinstance(config.algorithm, RMConfig)
    tokenizer = load_tokenizer(config.policy.model)
    train = load_pairs(config.data.train, config.data, tokenizer, quarantine=stage.folder.path / "quarantine.jsonl")
    held_out = load_pairs(config.data.eval, config.data, tokenizer) if config.data.eval else None
    num_steps = optimizer_steps(
        config.num_steps, config.num_epochs, len(train.pairs), config.algorithm.pairs_per_update
    )
    stage.progress.expect(num_steps)
    with ExitStack() as stack:
        reservation, cores = stage.reserve(role_requests(config, algorithm.roles))
        stack.callback(reservation.release)
        spec = ScalarSpec(
            config.policy.model,
            config.policy,
            config.cluster.device,
            num_steps,
            config.cluster.step_timeout_s,
            new_head_seed=config.seed,
        )
        settings = stage.group_settings("policy", config.policy)
        learners = await LearnerGroup.start(spec, settings, reservation=reservation, cores=cores)
        stack.callback(learners.stop)
        group = RewardModelGroup(learners, algorithm)
        progress = OfflineProgress(0, {})
        if stage.resumed is not None:
            progress = await restore_offline(stage.resumed, group)
        feeder = Feeder(_feed(stage, train, held_out, progress), timeout_s=config.cluster.step_timeout_s)
        stack.callback(feeder.stop)
        loop = OfflineLoop(
            feeder,
            group,
            OfflineSettings(num_steps, config.evaluation.every, config.checkpoint.every),
            progress=progress,
            sink=stage.sink(),
            saver=OfflineRunSaver(stage.store(), group, run_generation=stage.run_generation),
            should_stop=should_stop,
        )
        finished = await loop.run()
        await group.export(str(stage.folder.export / f"step-{finished.step}"))
    return finished


def optimizer_steps(num_steps: int, num_epochs: int, rows: int, per_update: int) -> int:
    """`num_steps` when it is given, else as many as `num_epochs` passes take, the last step filled from the next."""
    return num_steps or -(-num_epochs * rows // per_update)


def _feed(stage: Stage, train: PairSet, held_out: PairSet | None, progress: OfflineProgress) -> PairFeed:
    config = stage.config
    assert isinstance(config.algorithm, RMConfig)
    settings = FeedSettings(
        num_ranks=config.policy.num_ranks,
        pairs_per_update=config.algorithm.pairs_per_update,
        micro_batch_tokens=config.policy.micro_batch_tokens,
        seed=config.seed,
        shuffle=config.data.shuffle,
    )
    return PairFeed(train, held_out, settings, progress.data)
