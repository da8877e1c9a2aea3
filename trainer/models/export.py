"""A Hugging Face folder out of weights that come one by one, shard by shard: nothing holds the whole model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from raylign.trainer.models.architecture import set_noise
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.lora import is_adapter
from raylign.trainer.models.scalar_head import ScalarModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

SHARD_BYTES = 2 << 30
"""Of a file, and so of what an export holds in memory besides one layer."""

_LAYER = re.compile(r"(?:.*?\.)?(?:layers|h|blocks)\.\d+(?=\.)")


def export_hf(
    model: CausalLM | ScalarModel,
    weights: Iterable[tuple[str, Tensor]],
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a plain Hugging Face folder from whole, merged parameters (trainer/engine/buckets.py, on rank 0).

    A weight is copied to the host when it comes, and the one before is not needed any more. Files are of at most
    `shard_bytes` (a larger layer goes alone) and have an index when there are several, as transformers' own have.
    Raises ValueError when `weights` are not the model's.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    noise = getattr(model.hf, "raylign_noise", {})
    set_noise(model.hf.config, noise)
    try:
        model.hf.save_pretrained(path, state_dict={})  # the configurations
    finally:
        set_noise(model.hf.config, dict.fromkeys(noise, 0.0))
    shards = _Shards(path, shard_bytes)
    for layer in _layers(_expected(model, weights)):
        shards.add(_as_stored(model.hf, layer))
    shards.close()
    if tokenizer is not None:
        tokenizer.save_pretrained(path)


def _expected(model: CausalLM | ScalarModel, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights on the host. Raises ValueError for one that the model has not, or has and did not come."""
    lacking = {name for name, _ in model.hf.named_parameters() if not is_adapter(name)}
    for name, tensor in weights:
        if name not in lacking:
            raise ValueError(f"export has extra {name}")
        lacking.remove(name)
        yield name, tensor.detach().cpu().contiguous()
    if lacking:
        raise ValueError(f"export lacks {sorted(lacking)[:3]}")


def _layers(named: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Weights of one layer together, as they come: what transformers joins or splits on loading is within one."""
    held: dict[str, Tensor] = {}
    of = None
    for name, tensor in named:
        found = _LAYER.match(name)
        layer = found[0] if found else name
        if held and layer != of:
            yield held
            held = {}
        held[name], of = tensor, layer
    if held:
        yield held


def _as_stored(hf: PreTrainedModel, layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names and in the parts in which the model's folder had them."""
    kept = {name: tensor for name, tensor in layer.items() if name not in (hf._keys_to_ignore_on_save or ())}
    return {name: tensor.contiguous() for name, tensor in revert_weight_conversion(hf, kept).items()}


class _Shards:
    """Files that are written as they fill up, and get their names when it is known how many there are."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._written: list[tuple[Path, list[str]]] = []
        self._total = self._total_bytes = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Written now or later."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self._held and self._held_bytes + size > self._limit:
            self._write()
        self._held |= tensors
        self._held_bytes += size
        self._total_bytes += size
        self._total += sum(tensor.numel() for tensor in tensors.values())

    def close(self) -> None:
        """The last file, the names and the index."""
        self._write()
        count = len(self._written)
        where: dict[str, str] = {}
        for number, (part, names) in enumerate(self._written, 1):
            stem, suffix = Path(SAFE_WEIGHTS_NAME).stem, Path(SAFE_WEIGHTS_NAME).suffix
            name = SAFE_WEIGHTS_NAME if count == 1 else f"{stem}-{number:05d}-of-{count:05d}{suffix}"
            part.rename(self._folder / name)
            where |= dict.fromkeys(names, name)
        if count > 1:
            index = {
                "metadata": {"total_parameters": self._total, "total_size": self._total_bytes},
                "weight_map": where,
            }
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self._folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")

    def _write(self) -> None:
        part = self._folder / f"shard-{len(self._written) + 1}.part"
        save_file(self._held, part, metadata={"format": "pt"})
        self._written.append((part, list(self._held)))
        self._held, self._held_bytes = {}, 0
