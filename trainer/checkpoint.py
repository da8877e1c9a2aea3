"""What one checkpoint holds, and how it comes to be there whole or not at all.

    checkpoints/.tmp-step-000010/   being written: a folder a role, state.json
    checkpoints/step-000010/        immutable; manifest.json has size and sha256 of every file
    checkpoints/LATEST              the name of the newest verified one

Files are written, flushed, read back and hashed (a rank's own by the rank, beside the training), then the folder is
renamed and verified, then LATEST moves; only then may an old one go. A process killed at any point leaves the previous
checkpoint in use.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from raylign.trainer.engine.state_file import rank_file
from raylign.trainer.verified_folder import (
    FileDigest,
    find_damage,
    sync_folder,
    write_atomically,
    write_json,
    write_manifest,
)

STATE = "state.json"
LATEST = "LATEST"
_TMP_PREFIX = ".tmp-"
_ROOM = 1.2
"""Room that is asked for before a save, over the size of the last one."""

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


class CheckpointError(RuntimeError):
    """A checkpoint that was asked for cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class RngState:
    """The three random streams of a process, in JSON's terms."""

    python: list[Any]  # version, the Mersenne twister's words, the cached Gaussian
    numpy: list[Any]  # kind, words, position, whether a Gaussian is cached, that Gaussian
    torch: str  # base64 of the generator's bytes

    @classmethod
    def capture(cls) -> RngState:
        """Of this process, now."""
        version, internal, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
        return cls(
            python=[version, list(internal), gauss],
            numpy=[kind, keys.tolist(), int(position), int(has_gauss), float(cached)],
            torch=base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode("ascii"),
        )

    def restore(self) -> None:
        """Continue the streams in this process."""
        version, internal, gauss = self.python
        random.setstate((version, tuple(internal), gauss))
        kind, keys, *rest = self.numpy
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(self.torch)), dtype=torch.uint8))


@dataclass(frozen=True, slots=True)
class RunState:
    """Everything of a run that is not a model: small enough to read."""

    step: int  # finished steps
    run_generation: int  # counts starts and resumes; fences messages of an earlier life
    data: Mapping[str, Json]  # position in the prompt set (epoch, index, seed)
    kl: Mapping[str, Json]  # the KL controller
    reward: Mapping[str, Json]  # the running reward normaliser; empty when off
    rng: RngState  # of the driver
    best: Mapping[str, Json] = field(default_factory=dict)  # step and value of the best one; empty without a metric


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    state: RunState
    skipped: tuple[str, ...]  # one sentence for each newer one that did not verify

    def role(self, name: str) -> Path:
        """The folder of one role's engine state. Raises CheckpointError when the checkpoint has none."""
        folder = self.path / name
        if not folder.is_dir():
            raise CheckpointError(f"{self.path} holds no state of the {name}; it was saved by a run without one")
        return folder


@dataclass(frozen=True, slots=True)
class Draft:
    """A checkpoint being written. Roles write into `role(name)`, then the store commits it."""

    step: int
    path: Path

    def role(self, name: str) -> Path:
        """A role's own folder, made here so that every rank finds it."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class CheckpointStore:
    """The checkpoints of one run. One writer."""

    def __init__(self, root: Path, *, keep: int) -> None:
        self._root = root
        self._keep = keep
        self._protected: int | None = None

    def protect(self, step: int | None) -> None:
        """This step's checkpoint does not retire, however old it gets."""
        self._protected = step

    def begin(self, step: int) -> Draft:
        """Open a draft, dropping what an interrupted save left."""
        self._root.mkdir(parents=True, exist_ok=True)
        for leftover in self._root.glob(f"{_TMP_PREFIX}*"):
            shutil.rmtree(leftover)
        path = self._root / f"{_TMP_PREFIX}{folder_name(step)}"
        path.mkdir()
        return Draft(step, path)

    def commit(
        self,
        draft: Draft,
        state: RunState,
        *,
        num_ranks: Mapping[str, int],
        vouched: Mapping[str, FileDigest] | None = None,
    ) -> Path:
        """Publish a draft: manifest, rename, verify, LATEST, and only then retire old ones. Returns its folder.

        `num_ranks`: ranks of every role that saved; `vouched`: files that they have read back. Raises CheckpointError
        when one's file is not here, or what was written cannot be read back; LATEST then still names the old one.
        """
        if problem := _missing_ranks(draft.path, num_ranks):
            raise CheckpointError(problem)
        write_json(draft.path / STATE, asdict(state))
        write_manifest(draft.path, vouched=vouched)
        target = self._root / folder_name(draft.step)
        if target.exists():  # damaged, or of a history that a resume from an earlier step has abandoned
            target.rename(self._root / f"{_TMP_PREFIX}replaced-{target.name}")
        draft.path.rename(target)
        sync_folder(self._root)
        problem = find_damage(target, vouched=vouched)
        if problem:
            raise CheckpointError(f"{target} was written but does not verify: {problem}; is the disk full or failing?")
        write_atomically(self._root / LATEST, f"{target.name}\n")
        self._retire()
        return target

    def latest(self) -> Checkpoint | None:
        """What LATEST names, or the newest before it that verifies, with a sentence for each one skipped.

        Checkpoints of later steps than LATEST's are of an abandoned history and are not considered.
        None when the run has none at all. Raises CheckpointError when it has some and none verifies.
        """
        skipped: list[str] = []
        for path in self._saved(up_to=self._named_by_latest()):
            problem = find_damage(path)
            if problem is None:
                return Checkpoint(path, read_state(path), tuple(skipped))
            skipped.append(f"skipped {path.name}: {problem}")
        if skipped:
            raise CheckpointError(f"no checkpoint in {self._root} can be used: {'; '.join(skipped)}")
        return None

    def steps(self) -> list[int]:
        """The steps whose checkpoints can be gone back to, the newest first; whether they verify is seen then."""
        return [_step_of(path) for path in self._saved(up_to=self._named_by_latest())]

    def go_back_to(self, step: int) -> Checkpoint:
        """Make a step's checkpoint the newest one: later ones are of an abandoned history from now on.

        Raises CheckpointError when it does not verify; LATEST then stays.
        """
        found = open_checkpoint(self._root / folder_name(step))
        write_atomically(self._root / LATEST, f"{found.path.name}\n")
        return found

    def missing_room(self) -> str | None:
        """Why the disk has no room for one more checkpoint, by the size of the newest; None when it has."""
        saved = self._saved(up_to=self._named_by_latest())
        if not saved:
            return None
        needed = int(sum(p.stat().st_size for p in saved[0].rglob("*") if p.is_file()) * _ROOM)
        free = shutil.disk_usage(self._root).free
        if free >= needed:
            return None
        return f"{self._root} has {free / 1e6:.1f} MB left and a checkpoint wants {needed / 1e6:.1f} MB"

    def drop(self, draft: Draft) -> None:
        """Give up a draft and its room."""
        shutil.rmtree(draft.path, ignore_errors=True)

    def oldest_step(self) -> int | None:
        """The step of the oldest checkpoint that is kept; None when there is none."""
        saved = self._saved(up_to=self._named_by_latest())
        return _step_of(saved[-1]) if saved else None

    def _named_by_latest(self) -> int | None:
        pointer = self._root / LATEST
        name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        return _step_of(self._root / name) if name.startswith("step-") else None

    def _saved(self, *, up_to: int | None) -> list[Path]:
        """Newest first."""
        found = [p for p in self._root.glob("step-*") if up_to is None or _step_of(p) <= up_to]
        return sorted(found, key=_step_of, reverse=True)

    def _retire(self) -> None:
        for path in self._saved(up_to=self._named_by_latest())[max(self._keep, 1) :]:
            if _step_of(path) != self._protected:
                shutil.rmtree(path)
        for leftover in self._root.glob(f"{_TMP_PREFIX}*"):
            shutil.rmtree(leftover)


def _missing_ranks(draft: Path, num_ranks: Mapping[str, int]) -> str | None:
    """What a draft lacks to be the state of every rank; None when it is whole."""
    for role, expected in num_ranks.items():
        files = sorted(path.name for path in (draft / role).glob("rank-*.safetensors"))
        if files != [rank_file(rank) for rank in range(expected)]:
            return (
                f"{draft / role} holds the files of {len(files)} ranks and the {role} has {expected}: some ranks wrote "
                "elsewhere, or not at all; run_root must be one folder that every node shares"
            )
    return None


def folder_name(step: int) -> str:
    """`step-000010`: sorts as text up to a million steps, and by number beyond."""
    return f"step-{step:06d}"


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint named by the user. Raises CheckpointError when it is none or does not verify."""
    problem = find_damage(path)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    return Checkpoint(path, read_state(path), ())


def read_state(path: Path) -> RunState:
    """The RunState of a verified checkpoint."""
    raw = json.loads((path / STATE).read_text(encoding="utf-8"))
    return RunState(**{**raw, "rng": RngState(**raw["rng"])})


def _step_of(path: Path) -> int:
    number = path.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1
