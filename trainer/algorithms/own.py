"""Algorithms of a user's own: FILE.py:CLASS or module:CLASS in place of a name. docs/own-algorithm.md is their page."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from raylign.conf.own_code import OwnCodeError, first_line, load_named
from raylign.conf.schema import AlgorithmConfig
from raylign.trainer.algorithms.base import OfflineAlgorithm, OnlineAlgorithm


def own_algorithm(
    named: str,
) -> tuple[type[AlgorithmConfig], Callable[..., OnlineAlgorithm | OfflineAlgorithm]]:
    """The class of settings and the algorithm, as a row of the table ALGORITHMS.

    The first is the type of the class's field `config`. Raises OwnCodeError in one sentence.
    """
    found = load_named(named)
    if not inspect.isclass(found):
        raise OwnCodeError(f"is a {type(found).__name__}; an algorithm is a class with a field `config`")
    config = _settings(found)
    build: Callable[..., Any] = found
    _LOADED[named, config] = build
    return config, build


def loaded(named: str, config: type[AlgorithmConfig]) -> Callable[..., OnlineAlgorithm | OfflineAlgorithm]:
    """The class that was loaded with these settings, whatever became of its file since."""
    return _LOADED[named, config]


_LOADED: dict[tuple[str, type[AlgorithmConfig]], Callable[..., OnlineAlgorithm | OfflineAlgorithm]] = {}
"""Two loads of a file that has changed are two classes; a run goes on with the one its settings belong to."""


def _settings(algorithm: type) -> type[AlgorithmConfig]:
    try:
        config: Any = get_type_hints(algorithm).get("config")
    except Exception as error:
        raise OwnCodeError(f"its annotations cannot be read: {first_line(error)}") from error
    if config is None:
        raise OwnCodeError(
            "has no field `config`; annotate it with the dataclass of its settings, as `config: MyConfig`"
        )
    if not (inspect.isclass(config) and issubclass(config, AlgorithmConfig)):
        raise OwnCodeError(
            f"its `config` is a {getattr(config, '__name__', config)}; derive it from "
            "raylign.conf.schema.AlgorithmConfig, or from another algorithm's settings"
        )
    if not is_dataclass(config) or "__dataclass_fields__" not in vars(config):
        raise OwnCodeError(
            f"its settings class {config.__name__} is not a dataclass; write @dataclass(kw_only=True) above it"
        )
    return config
