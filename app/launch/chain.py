"""The chain of runs: wherever a model is named, a finished run may stand, and its export is meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from raylign.conf.errors import ConfigError
from raylign.conf.model_folder import ModelFolder, model_folder
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


def _folders(config: RunConfig) -> Iterator[tuple[str, ModelFolder]]:
    for role in MODEL_ROLES:
        named = getattr(config, role).model
        try:
            yield role, model_folder(named)
        except ValueError as error:
            raise ConfigError(f"{role}.model={named}: {error}.") from error
