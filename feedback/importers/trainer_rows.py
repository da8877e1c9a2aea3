"""Preference rows as other trainers document them: OpenAI's fine-tuning, LLaMA-Factory, ms-swift, NeMo RL.

Each is turned into TRL's columns and read as those; what stands beside (system, history, tools) stays beside.
"""

from __future__ import annotations

from collections.abc import Mapping

from raylign.feedback.events import Event
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, each_whole
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.preference_sets import kto_event, preference_event
from raylign.feedback.importers.turns import unpacked

_PAIRS = (
    {"input", "preferred_output", "non_preferred_output"},  # OpenAI, Azure
    {"prompt", "chosen_response", "rejected_response"},  # NeMo RL
    {"conversations", "chosen", "rejected"},  # LLaMA-Factory, ShareGPT form
    {"messages", "rejected_response"},  # ms-swift
    {"instruction", "input", "chosen", "rejected"},  # LLaMA-Factory, Alpaca form
)


def as_pair(columns: Columns) -> dict[str, object]:
    """`prompt`, `chosen`, `rejected` and what stands beside. Raises RowProblem for shapes that hold none of them."""
    row = {key: unpacked(value) for key, value in columns.items()}
    if "preferred_output" in row:
        given = _take(row, "input")
        beside = dict(given) if isinstance(given, Mapping) else {"messages": given}
        row |= {"prompt": beside.pop("messages", None), **beside}
        row |= {"chosen": _take(row, "preferred_output"), "rejected": _take(row, "non_preferred_output")}
    elif "chosen_response" in row:
        row |= {"chosen": _take(row, "chosen_response"), "rejected": _take(row, "rejected_response")}
    elif "conversations" in row:
        row["prompt"] = _take(row, "conversations")
    elif "rejected_response" in row:
        row["prompt"], row["chosen"] = _ended(_take(row, "messages"))
        row["rejected"] = _take(row, "rejected_response")
    else:
        given = _take(row, "input")
        asked = _take(row, "instruction")
        row["prompt"] = f"{asked}\n{given}" if isinstance(given, str) and given else asked
    return row


def _take(row: dict[str, object], name: str) -> object:
    if name not in row:
        raise RowProblem(f"no `{name}`")
    return row.pop(name)


def _ended(messages: object) -> tuple[list[object], list[object]]:
    """Messages and the last of them, apart."""
    if not isinstance(messages, list) or len(messages) < 2:
        raise RowProblem("`messages` does not end with an answer")
    return messages[:-1], messages[-1:]


def _is_pair(columns: Columns) -> bool:
    return any(shape <= set(columns) for shape in _PAIRS)


def _pair(row: Row, columns: Columns, context: Context) -> list[Event]:
    return preference_event(row, as_pair(columns), context)


def _label(columns: Columns) -> str | None:
    return next((name for name in ("kto_tag", "label") if isinstance(columns.get(name), bool)), None)


def _is_judged(columns: Columns) -> bool:
    return _label(columns) is not None and any(
        isinstance(columns.get(key), list) for key in ("messages", "conversations")
    )


def _judged(row: Row, columns: Columns, context: Context) -> list[Event]:
    """A conversation whose last answer is good or bad."""
    prompt, completion = _ended(columns.get("messages") or columns.get("conversations"))
    label = _label(columns)
    if label is None:
        raise RowProblem("no `label` or `kto_tag` that is true or false")
    read = {"prompt": prompt, "completion": completion, "label": columns[label], "tools": columns.get("tools")}
    return kto_event(row, read, context)


TRAINER_PAIRS = Format(
    name="trainer_pairs",
    title="Preference rows of OpenAI's fine-tuning, LLaMA-Factory, ms-swift and NeMo RL",
    recognises=_is_pair,
    parse=each_whole(_pair),
    ids_from_content=True,
)
TRAINER_LABELS = Format(
    name="trainer_labels",
    title="Labelled conversations of LLaMA-Factory and ms-swift (KTO)",
    recognises=_is_judged,
    parse=each_whole(_judged),
    ids_from_content=True,
)
