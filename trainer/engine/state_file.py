"""One rank's optimizer state on disk: plain tensors in safetensors, no pickle (DeepSpeed's own loader unpickles).

Ranks that are cut as those that saved read their own files as they are; others find their elements in all of them
(engine/relayout.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from raylign.trainer.engine.base import EngineStateError
from raylign.trainer.engine.relayout import Cut, Piece, SavedRank, read_pieces, refuse_other_parameters
from raylign.trainer.verified_folder import FileDigest, flush_and_hash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_META_KEY = "raylign_engine"
_CUT_KEY = "raylign_cut"
_INTS_KEY = "raylign_ints"
"""Names of what the optimizer keeps as Python integers (DeepSpeed's CPU Adam counts its steps so): its native code
takes no tensor there."""


@dataclass(frozen=True, slots=True)
class StateHeader:
    """What kind of engine saved, and where it stood."""

    kind: str  # e.g. "zero-2 bfloat16": engine and precision, in which the working weights are computed with
    rank: int
    world_size: int
    applied_steps: int
    frozen: str = ""  # digest of the weights that are not trained and how they are adapted; "" when all are

    @property
    def precision(self) -> str:
        """Of the working weights."""
        return self.kind.rpartition(" ")[2]


def state_path(folder: Path, rank: int) -> Path:
    """The file of one rank."""
    return folder / rank_file(rank)


def rank_file(rank: int) -> str:
    """Its name: `rank-00000.safetensors`."""
    return f"rank-{rank:05d}.safetensors"


def state_writer(
    folder: Path,
    header: StateHeader,
    cut: Cut,
    masters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    read: Callable[[Tensor], Tensor] = Tensor.detach,
) -> Callable[[], FileDigest]:
    """What writes float32 master weights and their AdamW moments, flushed and read back.

    It may be called in another thread as long as nothing changes the state. `read`: where a tensor's numbers are then.
    """
    held: dict[str, Tensor] = {}
    ints: list[str] = []
    for i, master in enumerate(masters):
        held[f"{i}.master"] = master
        for name, value in optimizer.state.get(master, {}).items():
            if isinstance(value, int):
                ints.append(f"{i}.{name}")
                value = torch.tensor(value)
            held[f"{i}.{name}"] = value
    metadata = {
        _META_KEY: json.dumps(asdict(header)),
        _INTS_KEY: json.dumps(ints),
        _CUT_KEY: json.dumps(asdict(cut)),
    }

    def write() -> FileDigest:
        folder.mkdir(parents=True, exist_ok=True)
        path = state_path(folder, header.rank)
        save_file({name: read(tensor).cpu().contiguous() for name, tensor in held.items()}, path, metadata=metadata)
        return flush_and_hash(path)

    return write


def load_masters(
    folder: Path, expected: StateHeader, cut: Cut, masters: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Copy a saved state into `masters`, which hold the parameters as `cut` says, and `optimizer`.

    Returns the applied steps. Raises EngineStateError when a file is missing, or is of another model or precision.
    """
    first = state_path(folder, 0)
    with ExitStack() as stack:
        saved = _header(_open(stack, first))
        if saved.precision != expected.precision:
            raise EngineStateError(
                f"{first} was saved in {saved.precision}, this run computes in {expected.precision}; resume with the "
                "same precision, or start from the checkpoint's export"
            )
        if saved.frozen != expected.frozen:
            raise EngineStateError(
                f"{first} holds adapters of another model, or with another lora.rank, lora.alpha, lora.rslora or "
                "lora.target_modules than this run's; resume with the same model folder and the same lora settings"
            )
        if (saved.kind, saved.world_size) == (expected.kind, expected.world_size):
            _load_own(_open(stack, state_path(folder, expected.rank)), masters, optimizer, folder)
            return saved.applied_steps
        ranks = [_saved_rank(_open(stack, state_path(folder, rank)), folder) for rank in range(saved.world_size)]
        refuse_other_parameters(ranks[0].cut, cut, str(folder))
        states = read_pieces(ranks, cut, masters, str(folder))
    for master, state in zip(masters, states, strict=True):
        optimizer.state[master] = {name: _in_optimizer(value, master, optimizer) for name, value in state.items()}
    return saved.applied_steps


def _open(stack: ExitStack, path: Path) -> safe_open:
    if not path.is_file():
        raise EngineStateError(f"no engine state: {path} does not exist")
    return stack.enter_context(safe_open(path, framework="pt"))


def _header(file: safe_open) -> StateHeader:
    return StateHeader(**json.loads(_metadata(file)[_META_KEY]))


def _metadata(file: safe_open) -> Mapping[str, str]:
    return file.metadata() or {}


def _saved_rank(file: safe_open, folder: Path) -> SavedRank:
    told = _metadata(file).get(_CUT_KEY)
    if told is None:
        raise EngineStateError(
            f"{folder} was saved by a version that did not write which weights a rank holds; resume with the "
            "zero_stage and num_ranks that saved it"
        )
    raw: dict[str, Any] = json.loads(told)
    cut = Cut(raw["shapes"], tuple(Piece(**piece) for piece in raw["pieces"]))
    return SavedRank(file, cut, frozenset(file.keys()))


def _in_optimizer(value: Tensor | float, master: Tensor, optimizer: torch.optim.Optimizer) -> Tensor | int:
    """A number in the form that the optimizer keeps its steps in."""
    if isinstance(value, Tensor):
        return value
    if isinstance(optimizer, torch.optim.AdamW):
        return torch.tensor(value, dtype=torch.float32, device=master.device)
    return int(value)


def _load_own(file: safe_open, masters: Sequence[Tensor], optimizer: torch.optim.Optimizer, where: Path) -> None:
    """This rank's own file, as it is."""
    names = list(file.keys())
    ints = frozenset(json.loads(_metadata(file).get(_INTS_KEY, "[]")))
    for i, master in enumerate(masters):
        _load_one(file, i, master, optimizer, [n for n in names if n.startswith(f"{i}.")], ints, where)
    if f"{len(masters)}.master" in names:
        raise EngineStateError(f"{where} holds more parameter groups than this model; was it another model?")


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
            key, kept = name.split(".", 1)[1], int(value) if name in ints else value.to(master.device, copy=True)
            state[key] = _in_optimizer(float(kept), master, optimizer) if not value.ndim else kept
    optimizer.state[master] = state
