"""Makes the dataclasses known to Hydra, so that every key in a yaml file or override is typed."""

from __future__ import annotations

from collections.abc import Mapping

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from raylign.conf.schema import AlgorithmConfig, RunConfig
from raylign.conf.secret_names import environment_value


def register(algorithms: Mapping[str, type[AlgorithmConfig]]) -> None:
    """Store `RunConfig` as `base_run` and each algorithm's settings as `algorithm/base_<name>`.

    The table is passed in, so that `conf` need not know the trainer. Calling it again replaces the same entries.
    From here on `${oc.env:NAME}` refuses secrets.
    """
    OmegaConf.register_new_resolver("oc.env", environment_value, replace=True)
    store = ConfigStore.instance()
    store.store(name="base_run", node=RunConfig)
    for name, config in algorithms.items():
        store.store(group="algorithm", name=f"base_{name}", node=config)


def register_own(config: type[AlgorithmConfig]) -> str:
    """Store the settings of a user's own algorithm as a choice of its own; its name in the group `algorithm`."""
    ConfigStore.instance().store(group="algorithm", name="own_code", node=config)
    return "own_code"
