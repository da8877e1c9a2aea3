"""What a replay of a run has seen of every row it trained on (evals/replay.py), and its file in the run folder.

A *draw* is one row in one optimizer step; a row of two epochs has two. A *unit* is what the model gives a number for:
an answer token's log-prob, or a sequence's score.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from raylign.conf.errors import DataError
from raylign.records.atomic import write_atomic
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FOLDER = "trace"
_TENSORS, _HEADER = "index.safetensors", "index.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """What the numbers belong to, and how well the replay agrees with the run."""

    key: str  # hash of the run's settings, start and data
    steps: int
    layers: tuple[str, ...]
    sketch_size: int
    sketch_seed: int
    seconds: float
    loss_gap: float  # largest relative difference between a step's loss in the run and in the replay
    loss_gap_step: int
    scalar: bool  # the model gives scores, not log-probs
    format: int = _FORMAT


@dataclass(frozen=True, slots=True)
class TraceIndex:
    """D draws in training order and U units; draw d has units `first_unit[d]` to `first_unit[d + 1]`."""

    header: IndexHeader
    step: Tensor  # [D] int64, from 1
    row: Tensor  # [D] int64: place in the training set
    lr: Tensor  # [D] float64
    loss: Tensor  # [D] float64: the row's part of the step's loss, times the rows of the step
    norm: Tensor  # [D] float64: L2 norm of that part's gradient, times the rows of the step
    layer_norm: Tensor  # [D, layers] float32: the same by layer
    sketch: Tensor  # [D, size] float16: the gradient's sketch, at length 1
    along: Tensor  # [D] float64: the step's change of the weights along the gradient (first-order change of the loss)
    first_unit: Tensor  # [D + 1] int64
    side: Tensor  # [U] uint8: 0 for the chosen or only answer, 1 for the rejected one
    before: Tensor  # [U] float32: under the weights that the step found
    after: Tensor  # [U] float32: under the weights that the step left
    push: Tensor  # [U] float32: derivative of the row's loss with respect to the unit
    movement: Tensor  # [size] float32: sketch of the run's change of the weights

    def units(self, draw: int) -> slice:
        """A draw's units."""
        return slice(int(self.first_unit[draw]), int(self.first_unit[draw + 1]))

    def draws_of(self, row: int) -> list[int]:
        """The draws of a row, in training order."""
        return (self.row == row).nonzero()[:, 0].tolist()

    def value(self, draw: int, *, after: bool = False) -> float:
        """What the row says of the model: the chosen answer's log-prob or score less the rejected one's."""
        at = self.units(draw)
        signed = torch.where(self.side[at] == 0, 1.0, -1.0).double()
        return float(((self.after if after else self.before)[at].double() * signed).sum())

    def unit_push(self, draw: int) -> float | None:
        """Derivative of the row's loss with respect to `value`; None where the loss is not a function of that alone."""
        at = self.units(draw)
        push = torch.where(self.side[at] == 0, self.push[at], -self.push[at]).double()
        if not push.numel() or not push[0] or (push - push[0]).abs().max() > 1e-4 * push[0].abs():
            return None
        return float(push[0])

    def predicted_change(self, draw: int) -> float | None:
        """First-order change of `value` by the draw's own step; None as above."""
        push = self.unit_push(draw)
        return None if push is None else float(self.along[draw]) / push

    def measured_change(self, draw: int) -> float:
        """Change of `value` by the draw's own step."""
        return self.value(draw, after=True) - self.value(draw)


def save_index(folder: Path, index: TraceIndex) -> None:
    """Write both files; an index without its header is none."""
    folder.mkdir(parents=True, exist_ok=True)
    header = folder / _HEADER
    header.unlink(missing_ok=True)
    staging = folder / f".{_TENSORS}"
    save_file({name: getattr(index, name).contiguous() for name in _NAMES}, staging)
    staging.replace(folder / _TENSORS)
    write_atomic(header, json.dumps(asdict(index.header), indent=1) + "\n")


def load_index(folder: Path, key: str) -> TraceIndex | None:
    """The index of `key`; None when there is none, or one of other settings or data.

    Raises DataError for a damaged one.
    """
    if not (folder / _HEADER).is_file():
        return None
    try:
        found = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
        if found.get("format") != _FORMAT or found.get("key") != key:
            return None
        header = IndexHeader(**{**found, "layers": tuple(found["layers"])})
        with safe_open(folder / _TENSORS, framework="pt") as file:
            return TraceIndex(header, **{name: file.get_tensor(name) for name in _NAMES})
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise DataError(
            f"{folder}: the trace index cannot be read ({error}); remove the folder to make it anew."
        ) from error


_NAMES = tuple(name for name in TraceIndex.__dataclass_fields__ if name != "header")
