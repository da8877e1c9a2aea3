"""Models and data as they may be named to others: without the folders of this machine, back to the base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from raylign.conf.model_folder import is_run

_LONGEST_CHAIN = 50


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What a chain of runs began with."""

    name: str  # a hub name where it is one, else the folder's own name
    licence: str  # as the model's own card says it; empty: it does not
    is_hub_name: bool


def short_model(named: str | None) -> str:
    """`sft, step 8` for a run's export, else the last part of a path; a hub name stays whole."""
    if not named:
        return "unknown"
    path = Path(named)
    if cached := _hub_name(path):
        return cached
    if path.parent.name == "export" and path.name.startswith("step-"):
        return f"{path.parent.parent.name}, step {path.name.removeprefix('step-')}"
    return path.name if _is_path(named) else named


def short_data(named: str) -> str:
    """The file's name; the name of a data set on a hub stays whole."""
    return Path(named).name if _is_path(named) else named


def base_model(policy_model: str) -> BaseModel:
    """Follow runs back to a model that no run made. A run whose settings are gone is as far as it goes."""
    named, licence = policy_model, _licence(policy_model)
    for _ in range(_LONGEST_CHAIN):
        before = _started_from(named)
        if before is None:
            break
        named = before
        licence = _licence(named) or licence
    hub = bool(_hub_name(Path(named))) or (not _is_path(named) and named.count("/") == 1)
    return BaseModel(short_model(named), licence, is_hub_name=hub)


def _hub_name(path: Path) -> str:
    """`org/name` for a snapshot in Hugging Face's cache (models--org--name/snapshots/...); empty for other paths."""
    part = next((part for part in path.parts if part.startswith("models--")), "")
    return part.removeprefix("models--").replace("--", "/", 1)


def _is_path(named: str) -> bool:
    """A hub name has at most one slash and is no file here."""
    path = Path(named).expanduser()
    return path.is_absolute() or named.startswith(".") or path.exists() or named.count("/") > 1 or bool(path.suffix)


def _started_from(named: str) -> str | None:
    """What the run that made `named` was trained from."""
    folder = Path(named).expanduser()
    run = next((f for f in (folder, *folder.parents[:2]) if f.is_dir() and is_run(f)), None)
    if run is None:
        return None
    try:
        config = yaml.safe_load((run / "resolved.yaml").read_text(encoding="utf-8"))
        return str(config["policy"]["model"]) or None
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None


def _licence(named: str) -> str:
    """`license` of the front matter of the folder's README.md."""
    try:
        text = (Path(named).expanduser() / "README.md").read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, IndexError):
        return ""
    found = head.get("license") if isinstance(head, dict) else None
    return found if isinstance(found, str) else ""
