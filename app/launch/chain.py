"""The chain of runs: wherever a model is named, a finished run may stand, and its export is meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml
from raylign.conf.errors import ConfigError
from raylign.conf.model_folder import ModelFolder, is_run, model_folder
from raylign.conf.schema import RunConfig

MODEL_ROLES = ("policy", "critic", "reference", "reward")


def with_model_folders(config: RunConfig) -> RunConfig:
    """The configuration with a Hugging Face folder in every place where a model is named.

    Raises ConfigError for a run that has no export.
    """
    found = dict(_folders(config))
    return replace(
        config, **{role: replace(getattr(config, role), model=folder.path) for role, folder in found.items()}
    )


def named_runs(config: RunConfig) -> list[str]:
    """A sentence for each model that is a run: which of its exports is used."""
    return [
        f"{role}.model={getattr(config, role).model} is a run; {folder.note}: {folder.path}"
        for role, folder in _folders(config)
        if folder.note
    ]


def came_from(config: RunConfig) -> dict[str, str]:
    """The run folder behind each model, by role: named as a run, or as an export in a run's folder."""
    found = {}
    for role in MODEL_ROLES:
        named = getattr(config, role).model
        folder = next((f for f in _with_parents(named) if is_run(f)), None) if named else None
        if folder is not None:
            found[role] = str(folder)
    return found


def chain_group(config: RunConfig, name: str) -> str:
    """The W&B group: as set, else the group of the run that the policy came from (else another role's), else `name`.

    A chain of runs (SFT, reward model, PPO) is one group by that, named after its first.
    """
    if config.tracking.group != "auto":
        return config.tracking.group
    groups = (_group_of(Path(folder)) for folder in came_from(config).values())
    return next((group for group in groups if group), name)


def _with_parents(named: str) -> tuple[Path, ...]:
    """`runs/a`, and for an export `runs/a/export/step-8` the run it lies in."""
    folder = Path(named).expanduser().absolute()
    return (folder, *folder.parents[:2]) if folder.is_dir() else ()


def _group_of(run: Path) -> str:
    """The group of an earlier run; its name where it recorded none."""
    try:
        config = yaml.safe_load((run / "resolved.yaml").read_text(encoding="utf-8"))
        group = str(config["tracking"]["group"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return run.name
    return run.name if group in ("", "auto") else group


def _folders(config: RunConfig) -> Iterator[tuple[str, ModelFolder]]:
    for role in MODEL_ROLES:
        named = getattr(config, role).model
        try:
            yield role, model_folder(named)
        except ValueError as error:
            raise ConfigError(f"{role}.model={named}: {error}.") from error
