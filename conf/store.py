"""Makes the dataclasses known to Hydra, so that every key in a yaml file or override is typed."""

from __future__ import annotations

from collections.abc import Mapping

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from raylign.conf.schema import AlgorithmConfig, RunConfig
from raylign.conf.secret_names import environment_value

_stored: dict[tuple[str | None, str], type] = {}
"""What this process has stored, by group and name."""


def register(algorithms: Mapping[str, type[AlgorithmConfig]]) -> None:
    """Store `RunConfig` as `base_run` and each algorithm's settings as `algorithm/base_<name>`.

    The table is passed in, so that `conf` need not know the trainer. An entry that is there already stays.
    From here on `${oc.env:NAME}` refuses secrets.
    """
    OmegaConf.register_new_resolver("oc.env", environment_value, replace=True)
    _store("base_run", RunConfig)
    for name, config in algorithms.items():
        _store(f"base_{name}", config, group="algorithm")


def register_own(config: type[AlgorithmConfig]) -> str:
    """Store the settings of a user's own algorithm as a choice of its own; its name in the group `algorithm`."""
    _store("own_code", config, group="algorithm")
    return "own_code"


def _store(name: str, config: type, *, group: str | None = None) -> None:
    """Unless it is what is stored: Hydra makes a tree of the whole class each time."""
    if _stored.get((group, name)) is not config:
        ConfigStore.instance().store(group=group, name=name, node=config)
        _stored[group, name] = config
