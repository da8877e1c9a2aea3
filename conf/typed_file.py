"""A yaml file read into a dataclass of settings, with every unknown key and wrong type named at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from raylign.conf.errors import ConfigError
from raylign.conf.nearest import nearest
from raylign.conf.yaml_text import load_yaml, read_yaml_text

T = TypeVar("T")


def read_typed(path: Path, kind: type[T]) -> T:
    """The settings of `path`, a yaml file, as the dataclass `kind`. Raises ConfigError with every problem."""
    try:
        given = load_yaml(read_yaml_text(path))
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: it is not yaml: {' '.join(str(error).split())}.") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: it holds no settings; write them as key: value.")
    tree, problems = OmegaConf.structured(kind), []
    for key, value in given.items():
        problems += _assign(tree, str(key), value)
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    config = OmegaConf.to_object(tree)
    assert isinstance(config, kind)
    return config


def _assign(tree: Any, key: str, value: object) -> list[str]:
    """Set one top-level key; what OmegaConf says against it, with the full key."""
    if key not in tree:
        near = nearest(key, [str(name) for name in tree])
        hint = f"did you mean {near}?" if near else f"it has {', '.join(str(name) for name in tree)}."
        return [f"{key}: there is no such setting; {hint}"]
    try:
        tree.merge_with({key: value})
    except OmegaConfBaseException as error:
        return [f"{error.full_key or key}: {str(error).splitlines()[0]}."]
    return []
