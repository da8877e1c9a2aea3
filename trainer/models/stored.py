"""What a model folder stores, read from the headers of its files: is it what the configuration describes? No weight is
read, so a folder that cannot be loaded is refused before anything is started."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raylign.conf.errors import ModelLoadError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

_INDEX = "model.safetensors.index.json"
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.\d+\.")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a folder."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors names it


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor that transformers would load of a folder. Raises ModelLoadError for files that are not whole."""
    found: dict[str, Stored] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                    part = opened.get_slice(name)
                    found[name] = Stored(tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{file} cannot be read ({error}); is it whole? fetch or write it again.") from error
    return found


def refuse_other_weights(folder: Path, skeleton: PreTrainedModel) -> None:
    """Raise ModelLoadError where the stored tensors cannot be the skeleton's.

    What could be meant by another name (an older one that transformers renames) is left to loading.
    """
    stored = stored_tensors(folder)
    if not stored:  # a configuration alone can be planned for; loading will find nothing to load
        return
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    problems = [
        *_other_shapes(stored, expected),
        *_not_floats(stored),
        *_more_layers(stored, expected, skeleton),
        *_missing(stored, expected, skeleton),
    ]
    if problems:
        raise ModelLoadError([f"{folder}: {problem}" for problem in problems])


def _files(folder: Path) -> list[Path]:
    whole, index = folder / "model.safetensors", folder / _INDEX
    if whole.is_file() or not index.exists():
        return [whole] if whole.is_file() else sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in listed.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{index} is not an index of weights ({type(error).__name__}: {error}).") from error
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ModelLoadError(f"{folder} lacks {_some(absent)}, which {_INDEX} lists; fetch the whole model.")
    return [folder / name for name in names]


def _other_shapes(stored: dict[str, Stored], expected: dict[str, tuple[int, ...]]) -> list[str]:
    wrong = [name for name, shape in expected.items() if name in stored and stored[name].shape != shape]
    if not wrong:
        return []
    first = wrong[0]
    return [
        f"config.json describes {first} as {list(expected[first])} and the weights store {list(stored[first].shape)}"
        f"{f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''}; are both of one model?"
    ]


def _not_floats(stored: dict[str, Stored]) -> list[str]:
    odd = sorted(name for name, one in stored.items() if one.dtype not in _FLOATS and name.endswith(".weight"))
    if not odd:
        return []
    return [
        f"{_some(odd)} stored as {stored[odd[0]].dtype}: quantised weights cannot be trained; use the model as floats."
    ]


def _more_layers(
    stored: dict[str, Stored], expected: dict[str, tuple[int, ...]], skeleton: PreTrainedModel
) -> list[str]:
    ignored = [re.compile(pattern) for pattern in skeleton._keys_to_ignore_on_load_unexpected or ()]
    own = {_LAYER.sub(".#.", name) for name in expected if _LAYER.search(name)}
    count = getattr(skeleton.config.get_text_config(), "num_hidden_layers", None)
    more = sorted(
        name
        for name in stored.keys() - expected.keys()
        if _LAYER.search(name) and not any(pattern.search(name) for pattern in ignored)
    )
    if own:  # of the same kind as those that there are: what else a folder may hold is another model's
        more = [name for name in more if _LAYER.sub(".#.", name) in own]
    elif isinstance(count, int) and count > 0:
        return []
    if not more:
        return []
    return [f"the weights store layers that config.json does not have (num_hidden_layers={count}): {_some(more)}."]


def _missing(stored: dict[str, Stored], expected: dict[str, tuple[int, ...]], skeleton: PreTrainedModel) -> list[str]:
    """Only where every stored name is known, so that none can be an older name of what is missing."""
    tied = set(skeleton.all_tied_weights_keys or ()) if hasattr(skeleton, "all_tied_weights_keys") else set()
    heads = {"lm_head.weight", "score.weight"}
    absent = sorted(expected.keys() - stored.keys() - tied - heads - _buffers(skeleton))
    if not absent or stored.keys() - expected.keys() - heads:
        return []
    return [f"the weights lack {_some(absent)}, which config.json describes; is the model whole?"]


def _buffers(skeleton: PreTrainedModel) -> set[str]:
    return {name for name, _ in skeleton.named_buffers()}


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
