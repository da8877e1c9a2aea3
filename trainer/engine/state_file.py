"""One rank's optimizer state on disk: plain tensors in safetensors, no pickle (DeepSpeed's own loader unpickles)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from raylign.trainer.engine.base import EngineStateError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_META_KEY = "raylign_engine"
_INTS_KEY = "raylign_ints"
"""Names of what the optimizer keeps as Python integers (DeepSpeed's CPU Adam counts its steps so): its native code
takes no tensor there."""


@dataclass(frozen=True, slots=True)
class StateHeader:
    """What must match between the engine that saved and the one that loads, and where it stood."""

    kind: str  # engine and precision, e.g. "zero-2 bfloat16"
    rank: int
    world_size: int
    applied_steps: int
    frozen: str = ""  # digest of the weights that are not trained and how they are adapted; "" when all are


def state_path(folder: Path, rank: int) -> Path:
    """The file of one rank."""
    return folder / rank_file(rank)


def rank_file(rank: int) -> str:
    """Its name: `rank-00000.safetensors`."""
    return f"rank-{rank:05d}.safetensors"


def save_masters(
    folder: Path,
    header: StateHeader,
    masters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    read: Callable[[Tensor], Tensor] = Tensor.detach,
) -> None:
    """Write float32 master weights and their AdamW moments. `read`: where a tensor's numbers are now."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    ints: list[str] = []
    for i, master in enumerate(masters):
        tensors[f"{i}.master"] = read(master).cpu().contiguous()
        for name, value in optimizer.state.get(master, {}).items():
            if isinstance(value, int):
                ints.append(f"{i}.{name}")
                value = torch.tensor(value)
            tensors[f"{i}.{name}"] = read(value).cpu().contiguous()
    metadata = {_META_KEY: json.dumps(asdict(header)), _INTS_KEY: json.dumps(ints)}
    save_file(tensors, state_path(folder, header.rank), metadata=metadata)


def load_masters(
    folder: Path, expected: StateHeader, masters: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Copy a saved state into `masters` and `optimizer`; returns the applied steps.

    Raises EngineStateError when the file is missing or was written by another kind of engine, rank count or model.
    """
    path = state_path(folder, expected.rank)
    if not path.is_file():
        raise EngineStateError(f"no engine state for rank {expected.rank}: {path} does not exist")
    with safe_open(path, framework="pt") as file:
        header = StateHeader(**json.loads((file.metadata() or {})[_META_KEY]))
        for field in ("kind", "rank", "world_size"):
            saved, now = getattr(header, field), getattr(expected, field)
            if saved != now:
                raise EngineStateError(
                    f"{path} was saved with {field}={saved}, this run has {field}={now}; resume with the same "
                    "zero_stage, precision and num_ranks, or start from the checkpoint's export"
                )
        if header.frozen != expected.frozen:
            raise EngineStateError(
                f"{path} holds adapters of another model, or with another lora.rank, lora.alpha, lora.rslora or "
                "lora.target_modules than this run's; resume with the same model folder and the same lora settings"
            )
        names = list(file.keys())
        ints = frozenset(json.loads((file.metadata() or {}).get(_INTS_KEY, "[]")))
        for i, master in enumerate(masters):
            _load_one(file, i, master, optimizer, [n for n in names if n.startswith(f"{i}.")], ints, path)
        if f"{len(masters)}.master" in names:
            raise EngineStateError(f"{path} holds more parameter groups than this model; was it another model?")
    return header.applied_steps


def _load_one(
    file: safe_open,
    i: int,
    master: Tensor,
    optimizer: torch.optim.Optimizer,
    names: list[str],
    ints: frozenset[str],
    path: Path,
) -> None:
    if f"{i}.master" not in names or list(file.get_slice(f"{i}.master").get_shape()) != list(master.shape):
        raise EngineStateError(f"{path}: parameter group {i} has another size; was it another model?")
    master.data.copy_(file.get_tensor(f"{i}.master"))
    state: dict[str, Tensor | int] = {}
    for name in names:
        if not name.endswith(".master"):
            value = file.get_tensor(name)
            # A copy, also on the CPU: the file's mapped pages cannot be given back (engine/offload.py).
            state[name.split(".", 1)[1]] = int(value) if name in ints else value.to(master.device, copy=True)
    optimizer.state[master] = state
