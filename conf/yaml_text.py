"""Limits of a yaml file, held before anything is built from it: size, depth, and what its aliases stand for.

Aliases let a file of 300 bytes stand for a billion values ("billion laughs"), and a parser that builds nested lists
recurses once a level. The events of a yaml stream show both without building anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 100_000
"""Values of one file, each alias counted as all that it stands for."""


class YamlLimitError(yaml.YAMLError):
    """A file beyond a limit. Its text is a clause that names the limit."""


def read_yaml_text(path: Path) -> str:
    """The text of a file of at most `MAX_BYTES` bytes; a byte order mark is left out.

    Raises OSError, UnicodeDecodeError and YamlLimitError.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise YamlLimitError(f"longer than {MAX_BYTES:,} bytes")
    return content.decode("utf-8-sig")


def check_limits(text: str) -> None:
    """Raises YamlLimitError beyond depth or number of values, and yaml.YAMLError where the text is not yaml."""
    sizes: dict[str, int] = {}  # anchor -> values that it stands for
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchor, values so far; the first is the file
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MAX_DEPTH + 1:
                raise YamlLimitError(f"nested deeper than {MAX_DEPTH} levels")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.NodeEvent):
            anchor, size = _leaf(event, sizes, open_nodes)
        else:
            continue
        if anchor:
            sizes[anchor] = size
        outer, so_far = open_nodes[-1]
        open_nodes[-1] = (outer, so_far + size)
        if so_far + size > MAX_VALUES:
            raise YamlLimitError(f"stands for more than {MAX_VALUES:,} values")


def _leaf(
    event: yaml.NodeEvent, sizes: Mapping[str, int], open_nodes: Sequence[tuple[str | None, int]]
) -> tuple[str | None, int]:
    """Anchor and number of values of a scalar or an alias."""
    if not isinstance(event, yaml.AliasEvent):
        return event.anchor, 1
    if any(event.anchor == anchor for anchor, _ in open_nodes):
        raise YamlLimitError(f"*{event.anchor} stands inside what it names")
    return None, sizes.get(event.anchor, 1)


def load_yaml(text: str) -> Any:
    """Plain values of a text within the limits. Raises yaml.YAMLError."""
    check_limits(text)
    return yaml.safe_load(text)


def load_mapping(text: str, expected: str) -> dict[str, Any]:
    """A setting that is a yaml mapping in a string; empty: none. Raises ValueError, a sentence with `expected`."""
    if not text.strip():
        return {}
    try:
        content = load_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected {expected}")
    return {f"{name}": value for name, value in content.items()}
