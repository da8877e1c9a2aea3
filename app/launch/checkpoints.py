"""Saving and restoring whole runs: every learner's state and the loop's own, in one verified folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from raylign.app.launch.export import export_step, mark_best
from raylign.conf.errors import RaylignError, Stopped, UserError
from raylign.conf.schema import CheckpointConfig, KLController
from raylign.records.journal import retire
from raylign.records.model_card import ModelCard
from raylign.records.run_folder import RunPaths
from raylign.reward.interfaces import ShapingState
from raylign.trainer.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    Draft,
    Json,
    RngState,
    RunState,
    open_checkpoint,
)
from raylign.trainer.functional.kl import KLState
from raylign.trainer.loops.best import BestStep
from raylign.trainer.loops.hooks import OnlineProgress
from raylign.trainer.loops.offline import OfflineProgress
from raylign.trainer.verified_folder import FileDigest

_POLICY, _CRITIC = "policy", "critic"


class Stateful(Protocol):
    """A role whose ranks can write themselves to a folder and read themselves back."""

    @property
    def num_ranks(self) -> int: ...
    async def save(self, folder: str) -> None:
        """Begin to write the state as it is now; later calls may follow at once."""
        ...

    async def saved(self) -> Mapping[str, FileDigest]:
        """What `save` wrote, by name in its folder, read back from the disk. Raises CheckpointError."""
        ...

    async def restore(self, folder: str) -> None: ...


class RewardState(Protocol):
    """The reward side's running statistics."""

    @property
    def state(self) -> ShapingState: ...
    def restore(self, state: ShapingState) -> None: ...


class Saving:
    """Writes the checkpoints of one run, beside its steps and one at a time.

    A disk that refuses one costs no step, unless it goes on refusing. A checkpoint that is not whole yet is a draft,
    which no resume looks at.
    """

    def __init__(
        self,
        store: CheckpointStore,
        journal: Path | None,
        *,
        run_generation: int,
        max_failed: int,
        tell: Callable[[str], None],
    ) -> None:
        """`journal`: where batches are removed that no checkpoint goes back before; None: they all stay."""
        self.store, self.run_generation = store, run_generation
        self._journal, self._max_failed, self._tell = journal, max_failed, tell
        self._failed = 0
        self._writing: asyncio.Task[str | None] | None = None

    async def save(
        self, roles: Mapping[str, Stateful], state: RunState, *, wait: bool, protect: int | None = None
    ) -> str | None:
        """Save the state as it is now. Why the disk refuses it, as far as that is known; None otherwise.

        `wait`: until it is saved; else it is written beside the steps that follow. `protect`: a step whose checkpoint
        does not retire. Raises RoleError when a rank is lost, and Stopped after more than `max_failed` refusals in a
        row; both also for the save before this one.
        """
        await self.settle()
        refused = self.store.missing_room()
        if refused is None:
            try:
                draft = await self._begin(roles, state.step)
            except OSError as error:
                refused = str(error)
        if refused is not None:
            return self._refused(refused, state.step)
        self._writing = asyncio.create_task(self._finish(draft, roles, state, protect))
        return await self.settle() if wait else None

    async def settle(self) -> str | None:
        """Wait for what is being written; returns and raises as `save` does."""
        task, self._writing = self._writing, None
        return None if task is None else await task

    async def check(self) -> None:
        """Raise what a save beside the steps has met, if it has ended."""
        if self._writing is not None and self._writing.done():
            await self.settle()

    async def close(self) -> None:
        """Let what is being written end, whatever it meets: the run ends for another reason, or is over."""
        try:
            await self.settle()
        except (RaylignError, OSError) as error:
            self._tell(f"warning: the checkpoint that was being written is not saved: {error}")

    async def _begin(self, roles: Mapping[str, Stateful], step: int) -> Draft:
        """Every role has begun to write when this returns."""
        draft = self.store.begin(step)
        try:
            await asyncio.gather(*(role.save(str(draft.role(name))) for name, role in roles.items()))
        except BaseException:
            self.store.drop(draft)
            raise
        return draft

    async def _finish(
        self, draft: Draft, roles: Mapping[str, Stateful], state: RunState, protect: int | None
    ) -> str | None:
        refused = await self._publish(draft, roles, state, protect)
        if refused is not None:
            return self._refused(refused, state.step)
        self._failed = 0
        oldest = self.store.oldest_step()
        if self._journal is not None and oldest is not None:
            retire(self._journal, up_to=oldest)
        return None

    def _refused(self, refused: str, step: int) -> str:
        self._failed += 1
        if self._failed > self._max_failed:
            raise Stopped(
                f"step {step} could not be saved, {self._failed} times in a row: {refused}; free some space "
                "(checkpoint.max_failed_saves allows more)"
            )
        self._tell(
            f"warning: step {step} could not be saved: {refused}; the previous checkpoint stays in use "
            f"({self._failed} of {self._max_failed} allowed in a row)"
        )
        return refused

    async def _publish(
        self, draft: Draft, roles: Mapping[str, Stateful], state: RunState, protect: int | None
    ) -> str | None:
        vouched: dict[str, FileDigest] = {}
        try:
            written = await asyncio.gather(*(role.saved() for role in roles.values()), return_exceptions=True)
            for name, found in zip(roles, written, strict=True):  # all have ended: none writes on
                if isinstance(found, BaseException):
                    raise found
                vouched |= {f"{name}/{file}": digest for file, digest in found.items()}
            num_ranks = {name: role.num_ranks for name, role in roles.items()}
            self.store.protect(protect)
            await asyncio.to_thread(lambda: self.store.commit(draft, state, num_ranks=num_ranks, vouched=vouched))
        except (CheckpointError, OSError) as error:
            self.store.drop(draft)
            return str(error)
        except BaseException:
            self.store.drop(draft)
            raise
        return None


class OnlineSaver:
    """A loops.CheckpointSaver: policy, critic, data position, KL state and reward statistics."""

    def __init__(
        self,
        saving: Saving,
        policy: Stateful,
        critic: Stateful | None,
        reward: RewardState,
        best: Callable[[Sequence[int]], int | None] = lambda saved: None,
    ) -> None:
        """`best`: which of the saved steps does not retire, however old it gets."""
        self._saving, self._best = saving, best
        self._roles = {_POLICY: policy} | ({_CRITIC: critic} if critic else {})
        self._reward = reward

    async def save(self, progress: OnlineProgress, *, wait: bool) -> str | None:
        """As Saving.save."""
        kl = {**asdict(progress.kl), "controller": progress.kl.controller.value}
        state = RunState(
            step=progress.step,
            run_generation=self._saving.run_generation,
            data=dict(progress.data),
            kl=kl,
            reward=asdict(self._reward.state),
            rng=RngState.capture(),
        )
        protect = self._best(self._saving.store.steps())
        return await self._saving.save(self._roles, state, wait=wait, protect=protect)

    async def check(self) -> None:
        """As Saving.check."""
        await self._saving.check()

    async def close(self) -> None:
        """As Saving.close."""
        await self._saving.close()


class ExportingModel(Stateful, Protocol):
    """A role that can also write itself as a plain folder."""

    async def export(self, folder: str) -> None: ...


class OfflineRunSaver:
    """A loops.offline.OfflineSaver: the model in training, the data position, the best step, and the exports."""

    def __init__(self, saving: Saving, learner: ExportingModel, folder: RunPaths, card: ModelCard) -> None:
        self._saving = saving
        self._learner = learner
        self._folder = folder
        self._card = card

    async def save(self, progress: OfflineProgress, *, wait: bool) -> str | None:
        """As OnlineSaver.save; the best step's checkpoint does not retire."""
        best = asdict(progress.best) if progress.best else {}
        state = RunState(
            progress.step, self._saving.run_generation, dict(progress.data), {}, {}, RngState.capture(), best=best
        )
        best_step = progress.best.step if progress.best else None
        return await self._saving.save({_POLICY: self._learner}, state, wait=wait, protect=best_step)

    async def check(self) -> None:
        """As Saving.check."""
        await self._saving.check()

    async def close(self) -> None:
        """As Saving.close."""
        await self._saving.close()

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
            f"checkpoint.resume={config.resume}: {error}; name another checkpoint, or give the run another name="
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


def _numbers(state: Mapping[str, Json]) -> dict[str, float]:
    return {name: float(value) for name, value in state.items() if isinstance(value, (int, float))}


def _position(data: Mapping[str, Json]) -> dict[str, int | str]:
    return {name: value for name, value in data.items() if isinstance(value, (int, str))}
