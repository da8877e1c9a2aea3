"""What both kinds of run share: the run folder, the Ray session, the placement, and clean endings."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from raylign.app.launch.checkpoints import Saving
from raylign.app.launch.environments import learner_process
from raylign.cluster.card_watch import CardWatch
from raylign.cluster.placement import Placement, RoleRequest, plan_placement
from raylign.cluster.reserve import Reservation, reserve
from raylign.cluster.session import Session
from raylign.cluster.shared_folder import SharedFolder
from raylign.conf.errors import Stopped
from raylign.conf.schema import JournalKeep, LearnerConfig, ReferenceConfig, RunConfig
from raylign.data.data_ledger import read_ledger
from raylign.records.metrics_log import read_history
from raylign.records.model_card import ModelCard, model_card
from raylign.records.progress import RunProgress, duration
from raylign.records.run_folder import RunFolder
from raylign.records.tracking import Tracker
from raylign.trainer.algorithms import algorithm_of
from raylign.trainer.algorithms.base import Role
from raylign.trainer.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from raylign.trainer.loops.hooks import MetricSink
from raylign.trainer.workers.learner_group import GroupSettings

T = TypeVar("T")


def seed_process(seed: int) -> None:
    """Python's, numpy's and torch's streams of this process, which are part of every checkpoint."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True, slots=True)
class Stage:
    """A run's context: everything the composition of roles needs besides the algorithm."""

    config: RunConfig
    folder: RunFolder
    session: Session
    tracker: Tracker
    progress: RunProgress
    resumed: Checkpoint | None  # what this run goes on from, verified
    run_generation: int  # counts the starts of this run
    shared: SharedFolder  # the run folder as ranks must find it
    steps: MetricSink  # where a loop's steps go
    cards: CardWatch | None = None  # None: the run uses none

    def reserve(self, requests: Sequence[RoleRequest]) -> tuple[Reservation, Mapping[str, int]]:
        """The placement of all roles, reserved, and the CPU cores of each node. Raises ClusterError."""
        cluster = self.config.cluster
        nodes = self.session.nodes()
        placement: Placement = plan_placement(requests, cluster.placement, nodes)
        cores = {node.node_id: max(1, int(node.cpus)) for node in nodes}
        reserved = reserve(placement, timeout_s=cluster.start_timeout_s)
        used = len({slot.node_id for slot in placement.slots})
        roles = ", ".join(f"{request.role} {request.count}" for request in requests)
        self.progress.notice(f"starting {roles} on {used} node{'s' if used > 1 else ''}")
        return reserved, cores

    def watch_cards(self, actors: Sequence[object]) -> None:
        """Of the nodes of these actors (Ray's handles), where the run uses cards at all."""
        if self.cards is not None:
            self.cards.add(actors)

    async def ready(self, role: str, starting: Awaitable[T]) -> T:
        """What `starting` gives, with a notice when it is there: on a cluster the first step is minutes away."""
        began = time.monotonic()
        started = await starting
        self.progress.notice(f"{role} is ready after {duration(time.monotonic() - began)}")
        return started

    def group_settings(self, role: str, config: LearnerConfig | ReferenceConfig) -> GroupSettings:
        """How the ranks of a learner are run."""
        cluster = self.config.cluster
        return GroupSettings(
            role=role,
            process=learner_process(self.config, config, local=self.session.local),
            micro_batch_tokens=config.micro_batch_tokens,
            start_timeout_s=cluster.start_timeout_s,
            step_timeout_s=cluster.step_timeout_s,
            log_dir=str(self.folder.logs),
            run_folder=self.shared,
            profiled=tuple(self.config.profile.steps),
            sequence_parallel_size=config.sequence_parallel_size if isinstance(config, LearnerConfig) else 1,
        )

    def store(self) -> CheckpointStore:
        """Where the run's checkpoints lie."""
        return CheckpointStore(self.folder.checkpoints, keep=self.config.checkpoint.keep)

    def saving(self) -> Saving:
        """What writes them."""
        checkpoint = self.config.checkpoint
        return Saving(
            self.store(),
            self.folder.journal if checkpoint.journal is JournalKeep.needed else None,
            run_generation=self.run_generation,
            max_failed=checkpoint.max_failed_saves,
            tell=self.progress.notice,
        )

    def newest_step(self) -> int:
        """The furthest step whose numbers are written; -1 when there is none."""
        rows = read_history(self.folder.metrics).rows
        return rows[-1].step if rows else -1

    def go_back(self) -> Checkpoint | None:
        """Make the newest usable checkpoint the run's present, in this process; None: its start."""
        try:
            found = self.store().latest() or self.resumed
        except CheckpointError as error:
            raise Stopped(str(error)) from error
        if found is None:
            seed_process(self.config.seed)
        for sentence in found.skipped if found else ():
            self.progress.notice(f"warning: {sentence}; is the disk failing?")
        self.tracker.rewind(found.state.step if found else -1)
        return found

    def model_card(self) -> ModelCard:
        """What the run's exports say of themselves."""
        roles = algorithm_of(self.config.algorithm).roles
        ledger = read_ledger(self.folder.data_ledger)
        return model_card(
            self.config,
            with_reference=Role.REFERENCE in roles,
            metrics=self.folder.metrics,
            data_ledger=ledger.id if ledger else "",
        )


@dataclass(frozen=True, slots=True)
class WithCards:
    """A loops.MetricSink that adds what the cards of all nodes have done."""

    sink: MetricSink
    cards: CardWatch

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step."""
        self.sink.log(step, {**metrics, **self.cards.figures()})


@dataclass(frozen=True, slots=True)
class ShownMetrics:
    """A loops.MetricSink: the tracker writes, and a person sees the step's few numbers."""

    tracker: Tracker
    progress: RunProgress
    beat: Callable[[], None] = lambda: None  # there is progress

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step."""
        self.beat()
        self.tracker.log(step, metrics)
        self.progress.step(step, metrics)
