"""JSON schemas of tools, from type hints and docstrings. transformers' own reading of them, which TRL uses too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from raylign.rollout.environments.interfaces import EnvironmentRefused

RESERVED = frozenset({"reset", "get_reward", "close"})
"""Public methods of a class in TRL's form that are no tools."""


def tool_methods(environment: object) -> dict[str, Callable[..., Any]]:
    """Every public method of an object in TRL's form that is a tool, by name, in TRL's order, which is by name."""
    names = sorted({name for kind in type(environment).__mro__ for name in vars(kind)})
    wanted = [name for name in names if not name.startswith("_") and name not in RESERVED]
    written = [n for n in wanted if not isinstance(inspect.getattr_static(environment, n, None), property)]  # may raise
    return {name: getattr(environment, name) for name in written if inspect.ismethod(getattr(environment, name, None))}


def tool_schema(name: str, method: Callable[..., Any]) -> Mapping[str, Any]:
    """The schema of one tool. Raises EnvironmentRefused naming the method, what it lacks and what to do."""
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    kinds = {p.kind: p for p in inspect.signature(method).parameters.values()}
    for kind, star in ((inspect.Parameter.VAR_POSITIONAL, "*"), (inspect.Parameter.VAR_KEYWORD, "**")):
        if kind in kinds:
            raise EnvironmentRefused(
                f"its method {name} takes {star}{kinds[kind].name}, and a call names every argument; write its "
                f"parameters out, or name it _{name}"
            )
    try:
        schema: Mapping[str, Any] = get_json_schema(method)
    except (DocstringParsingException, TypeHintParsingException, NameError) as error:
        reason = " ".join(str(error).split())
        raise EnvironmentRefused(
            f"its method {name} cannot be a tool ({reason}); give every parameter a type hint and a line under `Args:` "
            f"in the docstring, or name it _{name}"
        ) from error
    return schema
