"""The heads that `raylign ensemble` leaves in a reward model's folder, and what they say of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from raylign.conf.errors import ModelLoadError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = "ensemble"
"""Beside the model's weights; a folder, so that whoever loads the model does not take it for a part of that."""

_FILE = "heads.safetensors"


@dataclass(frozen=True, slots=True)
class Judged:
    """A reward model's score of a sequence, and how far its heads are from each other (standard deviation)."""

    score: float
    spread: float


def write_heads(folder: Path, heads: Tensor, trained: Tensor) -> Path:
    """`heads` `[K, H]`, made from the trained head `[H]` of the model in `folder`."""
    path = folder / FOLDER / _FILE
    path.parent.mkdir(exist_ok=True)
    save_file({"heads": heads.float().contiguous(), "trained": trained.float().contiguous()}, path)
    return path


def has_heads(folder: Path) -> bool:
    """Whether `read_heads` would find any."""
    return (folder / FOLDER / _FILE).is_file()


def read_heads(folder: Path, trained: Tensor) -> Tensor:
    """`[K, H]` float32. Raises ModelLoadError when there are none, or when they were made from another head."""
    path = folder / FOLDER / _FILE
    if not path.is_file():
        raise ModelLoadError(f"{folder}: it has no ensemble; make one by `raylign ensemble`.")
    try:
        found = load_file(path)
        heads, made_from = found["heads"], found["trained"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelLoadError(f"{path}: it cannot be read ({error}); make it again by `raylign ensemble`.") from error
    if made_from.shape != trained.shape or not torch.equal(made_from, trained.detach().float().cpu()):
        raise ModelLoadError(f"{path}: it was made for another model; make it again by `raylign ensemble`.")
    return heads
