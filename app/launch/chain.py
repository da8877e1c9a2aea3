"""The chain of runs: wherever a model is named, a finished run may stand, whose export is meant, or a hub's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import yaml
from raylign.app.launch.hub import hub_model
from raylign.conf.errors import ConfigError
from raylign.conf.model_folder import ModelFolder, is_hub_name, is_run, model_folder
from raylign.conf.schema import RunConfig
from raylign.records.manifest import read_manifest

MODEL_ROLES = ("policy", "critic", "reference", "reward")


def with_model_folders(config: RunConfig, *, fetch: Callable[[str], None] | None = None) -> RunConfig:
    """The configuration with a Hugging Face folder in every place where a model is named.

    `fetch`: gets a sentence before a model is downloaded; None: none is. Raises ConfigError for a run that has no
    export, and for a hub's model that cannot be had.
    """
    pinned = _pinned(config)
    found = {role: folder.path for role, folder in _folders(config)}
    for role, named in found.items():
        if is_hub_name(named):
            model = hub_model(f"{role}.model", named, pinned=pinned.get(role, ""), fetch=fetch)
            found[role] = model.folder
    return replace(config, **{role: replace(getattr(config, role), model=folder) for role, folder in found.items()})


def hub_models(given: RunConfig, settled: RunConfig) -> dict[str, str]:
    """`owner/name@commit` for each role whose model `given` names on a hub; its folder's name is the commit."""
    named = {role: getattr(given, role).model for role in MODEL_ROLES}
    return {
        role: f"{name.partition('@')[0]}@{Path(getattr(settled, role).model).name}"
        for role, name in named.items()
        if is_hub_name(name)
    }


def _pinned(config: RunConfig) -> Mapping[str, str]:
    """What the run's last start used of a hub: a resumed run continues with the same revisions."""
    manifest = Path(config.run_root).expanduser() / config.name / "manifest.json"
    if config.checkpoint.resume == "none" or not manifest.is_file():
        return {}
    return read_manifest(manifest).current.hub_models


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
