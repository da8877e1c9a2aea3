"""The settings of an algorithm of a user's own, read from its imported class as conf/reference.py reads ours."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from itertools import pairwise
from typing import get_type_hints

from raylign.conf.own_code import OwnCodeError
from raylign.conf.reference import Key, Section, docstring, expected
from raylign.conf.schema import AlgorithmConfig

_PLAIN = (int, float, bool, str)


def own_section(config: type[AlgorithmConfig]) -> Section:
    """The section `algorithm` for these settings. Raises OwnCodeError for one without a default or of a type that no
    setting can have."""
    hints, docs = get_type_hints(config), _docs(config)
    keys = [_key(field, hints[field.name], docs) for field in fields(config)]
    return Section("algorithm", inspect.getdoc(config) or "", tuple(keys))


def _key(field: Field[object], kind: object, docs: Mapping[str, str]) -> Key:
    if field.name == "name":
        return Key("algorithm.name", "str", "???", "FILE.py:NAME or module:NAME.", (), "text")
    if kind not in _PLAIN and not _is_enum(kind):
        raise OwnCodeError(
            f"its setting {field.name} is of type {getattr(kind, '__name__', kind)}; settings of an own algorithm are "
            "int, float, bool, str or an Enum"
        )
    assert isinstance(kind, type)
    if field.default is MISSING:
        raise OwnCodeError(f"its setting {field.name} has no default; give it one")
    members = tuple(kind.__members__) if issubclass(kind, Enum) else ()
    return Key(
        f"algorithm.{field.name}", kind.__name__, _shown(field.default), docs.get(field.name, ""), members,
        f"one of {', '.join(members)}" if members else expected(kind.__name__),
    )  # fmt: skip


def _is_enum(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _shown(value: object) -> str:
    if isinstance(value, Enum):
        return value.name
    return str(value).lower() if isinstance(value, bool) else str(value) or "''"


def _docs(config: type) -> dict[str, str]:
    """The text under each setting, of the nearest class that has one."""
    found: dict[str, str] = {}
    for base in reversed([c for c in config.__mro__ if is_dataclass(c)]):
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):
            continue
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, after in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and (text := docstring(after)):
                found[field.target.id] = text
    return found
