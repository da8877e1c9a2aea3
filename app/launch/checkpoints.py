"""Saving and restoring whole runs: every learner's state and the loop's own, in one verified folder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from raylign.app.launch.export import export_step, mark_best
from raylign.conf.errors import UserError
from raylign.conf.schema import CheckpointConfig, KLController
from raylign.records.model_card import ModelCard
from raylign.records.run_folder import RunPaths
from raylign.reward.interfaces import ShapingState
from raylign.trainer.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    Json,
    RngState,
    RunState,
    open_checkpoint,
)
from raylign.trainer.functional.kl import KLState
from raylign.trainer.loops.best import BestStep
from raylign.trainer.loops.hooks import OnlineProgress
from raylign.trainer.loops.offline import OfflineProgress

_POLICY, _CRITIC = "policy", "critic"


class Stateful(Protocol):
    """A role whose ranks can write themselves to a folder and read themselves back."""

    @property
    def num_ranks(self) -> int: ...
    async def save(self, folder: str) -> None: ...
    async def restore(self, folder: str) -> None: ...


class RewardState(Protocol):
    """The reward side's running statistics."""

    @property
    def state(self) -> ShapingState: ...
    def restore(self, state: ShapingState) -> None: ...


class OnlineSaver:
    """A loops.CheckpointSaver: policy, critic, data position, KL state and reward statistics."""

    def __init__(
        self,
        store: CheckpointStore,
        policy: Stateful,
        critic: Stateful | None,
        reward: RewardState,
        *,
        run_generation: int,
    ) -> None:
        self._store = store
        self._roles = {_POLICY: policy} | ({_CRITIC: critic} if critic else {})
        self._reward = reward
        self._run_generation = run_generation

    async def save(self, progress: OnlineProgress) -> None:
        """Raises RoleError when a rank cannot write, CheckpointError when what was written does not read back."""
        kl = {**asdict(progress.kl), "controller": progress.kl.controller.value}
        state = RunState(
            step=progress.step,
            run_generation=self._run_generation,
            data=dict(progress.data),
            kl=kl,
            reward=asdict(self._reward.state),
            rng=RngState.capture(),
        )
        await _save(self._store, self._roles, state)


class ExportingModel(Stateful, Protocol):
    """A role that can also write itself as a plain folder."""

    async def export(self, folder: str) -> None: ...


class OfflineRunSaver:
    """A loops.offline.OfflineSaver: the model in training, the data position, the best step, and the exports."""

    def __init__(
        self,
        store: CheckpointStore,
        learner: ExportingModel,
        folder: RunPaths,
        card: ModelCard,
        *,
        run_generation: int,
    ) -> None:
        self._store = store
        self._learner = learner
        self._folder = folder
        self._card = card
        self._run_generation = run_generation

    async def save(self, progress: OfflineProgress) -> None:
        """As OnlineSaver.save; the best step's checkpoint does not retire."""
        best = asdict(progress.best) if progress.best else {}
        state = RunState(
            progress.step, self._run_generation, dict(progress.data), {}, {}, RngState.capture(), best=best
        )
        self._store.protect(progress.best.step if progress.best else None)
        await _save(self._store, {_POLICY: self._learner}, state)

    async def export(self, progress: OfflineProgress) -> None:
        """`export/step-N`, and `export/BEST` when this step is the best one."""
        await export_step(self._folder.export, progress.step, self._learner.export, self._card)
        if progress.best and progress.best.step == progress.step:
            mark_best(self._folder.export, progress.step)


def find_resume(config: CheckpointConfig, folder: RunPaths) -> Checkpoint | None:
    """What a run goes on from, verified; None for a new run.

    Raises UserError when a checkpoint was named, or exists, and cannot be used.
    """
    if config.resume == "none":
        return None
    try:
        if config.resume == "auto":
            return CheckpointStore(folder.checkpoints, keep=config.keep).latest()
        return open_checkpoint(Path(config.resume).expanduser())
    except (CheckpointError, OSError) as error:
        raise UserError(
            f"checkpoint.resume={config.resume}: {error}; name another checkpoint, or start anew under another name="
        ) from error


def last_good_step(folder: RunPaths) -> int | None:
    """The newest verified checkpoint's step; None when there is none to go on from."""
    try:
        found = CheckpointStore(folder.checkpoints, keep=1).latest()
    except CheckpointError:
        return None
    return found.state.step if found else None


async def restore_online(
    checkpoint: Checkpoint, policy: Stateful, critic: Stateful | None, reward: RewardState
) -> OnlineProgress:
    """Every role's state back in place, and where the loop stood."""
    roles = {_POLICY: policy} | ({_CRITIC: critic} if critic else {})
    await asyncio.gather(*(role.restore(str(checkpoint.role(name))) for name, role in roles.items()))
    state = checkpoint.state
    reward.restore(ShapingState(**_numbers(state.reward)))
    state.rng.restore()
    kl = KLState(KLController(state.kl["controller"]), **_numbers(state.kl))
    return OnlineProgress(state.step, kl, _position(state.data))


async def restore_offline(checkpoint: Checkpoint, learner: Stateful) -> OfflineProgress:
    """The model's state back in place, and where the loop stood."""
    await learner.restore(str(checkpoint.role(_POLICY)))
    checkpoint.state.rng.restore()
    best = _numbers(checkpoint.state.best)
    return OfflineProgress(
        checkpoint.state.step,
        _position(checkpoint.state.data),
        BestStep(int(best["step"]), best["value"]) if best else None,
    )


async def _save(store: CheckpointStore, roles: Mapping[str, Stateful], state: RunState) -> None:
    draft = store.begin(state.step)
    await asyncio.gather(*(role.save(str(draft.role(name))) for name, role in roles.items()))
    num_ranks = {name: role.num_ranks for name, role in roles.items()}
    await asyncio.to_thread(lambda: store.commit(draft, state, num_ranks=num_ranks))


def _numbers(state: Mapping[str, Json]) -> dict[str, float]:
    return {name: float(value) for name, value in state.items() if isinstance(value, (int, float))}


def _position(data: Mapping[str, Json]) -> dict[str, int | str]:
    return {name: value for name, value in data.items() if isinstance(value, (int, str))}
