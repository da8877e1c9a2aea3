"""A run's exports: each whole or not there at all, with its model card, the best one marked."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from raylign.conf.model_folder import BEST
from raylign.records.atomic import write_atomic
from raylign.records.model_card import ModelCard, write_model_card


async def export_step(exports: Path, step: int, write: Callable[[str], Awaitable[None]], card: ModelCard) -> Path:
    """`exports/step-<step>` by `write(folder)`, put in place when it is complete. An older one is replaced."""
    target, part = exports / f"step-{step}", exports / f".step-{step}.part"
    if part.exists():
        shutil.rmtree(part)
    await write(str(part))
    write_model_card(part, card, step)
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    return target


def mark_best(exports: Path, step: int) -> None:
    """`exports/BEST` names this step; the export it named before goes."""
    pointer = exports / BEST
    before = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    write_atomic(pointer, f"step-{step}\n")
    if before and before != f"step-{step}" and (exports / before).is_dir():
        shutil.rmtree(exports / before)
