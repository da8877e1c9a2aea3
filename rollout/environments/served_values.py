"""What servers of environments give, as episodes have it: tools, numbers, and text that a model reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raylign.rollout.environments.interfaces import EnvironmentFailure

Tools = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Form:
    """What was seen of a server: how a model's turn becomes an action, and an observation what it reads."""

    tools: Tools
    by_mcp: bool = False  # OpenEnv: a call is of one of the server's own tools; else its arguments are the action
    text: str = ""  # OpenEnv: the field of the action that what the model says goes into; "": it calls tools
    observation: str = ""  # OpenEnv: the field of the observation that it reads; "": all that is set


def schema_of(name: str, description: str, parameters: object) -> Mapping[str, Any]:
    """A tool in the form that chat templates print."""
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def number(value: object) -> float | None:
    """A reward. Raises EnvironmentFailure for what is none."""
    if value is None:
        return None
    try:
        found = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # a whole number beyond every float
        found = math.nan
    if not math.isfinite(found):
        raise EnvironmentFailure(f"it gave {str(value)[:40]} as reward")
    return found


def shown_text(value: object) -> str:
    """A text as it is, the text blocks of an MCP result, else JSON."""
    if isinstance(value, str):
        return value
    content = value.get("content") if isinstance(value, Mapping) else None
    if isinstance(content, list) and content and all(isinstance(b, Mapping) and "text" in b for b in content):
        return "\n".join(str(block["text"]) for block in content)
    return json.dumps(value, ensure_ascii=False)
