"""Whether every model folder of a run has the files that the run will read. No weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from raylign.conf.checks import Needs
from raylign.conf.derive import reference_model
from raylign.conf.schema import RunConfig

_TOKENIZERS = ("tokenizer*", "vocab.*", "*.model", "tekken.json")  # as families name them
_SETTINGS = ("config.json", "generation_config.json")


def broken_settings(config: RunConfig, needs: Needs) -> Iterator[str]:
    """A sentence for every file of settings in a model's folder that is not a JSON object."""
    for role, folder in _folders(config, needs).items():
        for name in _SETTINGS:
            file = folder / name
            if file.exists() and (why := _not_an_object(file)):
                yield f"{role}.model={folder}: {name} {why}; fetch or write it again."


def lacking_files(config: RunConfig, needs: Needs) -> Iterator[str]:
    """A sentence for every folder without weights, or without the tokenizer that a policy needs."""
    for role, folder in _folders(config, needs).items():
        if not any(folder.glob("*.safetensors")):
            other = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in folder.glob(pattern))
            found = f", and {other[0]} is a format that is not read" if other else ""
            yield f"{role}.model={folder} holds no weights (*.safetensors){found}; fetch all of it, or convert it."
        if role == "policy" and not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
            yield (
                f"{role}.model={folder} holds no tokenizer (tokenizer.json, tokenizer_config.json); copy the files of "
                "the model's tokenizer into the folder."
            )


def _folders(config: RunConfig, needs: Needs) -> dict[str, Path]:
    """Of every role with a model. A folder that is not there is refused with the settings (conf/checks.py)."""
    named = {"policy": config.policy.model}
    if needs.critic:
        named["critic"] = config.critic.model
    if needs.reference:
        named["reference"] = reference_model(config)
    if needs.reward:
        named["reward"] = config.reward.model
    found = {role: Path(name).expanduser() for role, name in named.items() if name}
    seen: dict[Path, str] = {}
    return {role: path for role, path in found.items() if path.is_dir() and seen.setdefault(path, role) == role}


def _not_an_object(file: Path) -> str:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    return "" if isinstance(read, dict) else "is not a JSON object"
