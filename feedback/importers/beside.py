"""What stood beside a question: earlier turns and instructions become turns, other text is not passed over in silence.

How a chain put retrieved context into its prompt is nowhere in its inputs, so such a row is put aside: a model trained
on it would learn to answer from what it does not see.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from raylign.data.types import Message
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.turns import names_of, turns_of, unpacked

HISTORY = ("chat_history", "history", "conversation_history", "message_history", "previous_messages", "past_messages",
           "memory", "messages", "conversation")  # fmt: skip
INSTRUCTIONS = ("system", "system_prompt", "system_message", "system_instruction", "instructions", "developer")
CONTEXT = (
    "context", "contexts", "documents", "docs", "source_documents", "retrieved_documents", "retrieved_contexts",
    "retrieved_docs", "passages", "passage", "references", "reference", "sources", "search_results", "knowledge",
    "chunks", "evidence", "image", "images", "files", "attachments", "tools", "functions",
)  # fmt: skip
_LABELS = re.compile(
    r"(?:^|_)(?:id|ids|uuid|hash|name|lang|language|locale|model|models|user|session|thread|channel|type|kind|category|"
    r"topic|domain|split|source|date|time|timestamp|created|updated|version|env|environment|tenant|config|settings|"
    r"params|parameters|metadata|tags|temperature|stop|stream|callbacks|agent_scratchpad|intermediate_steps|url)$"
)
_SPEAKER = re.compile(r"^(Human|User|AI|Assistant|System)\s*:\s?", re.MULTILINE | re.IGNORECASE)
_SPEAKERS = {"human": "user", "user": "user", "ai": "assistant", "assistant": "assistant", "system": "system"}


_QUESTIONS = ("input", "question", "prompt", "query", "user_input", "user_message", "text", "messages", "chat_history")


def prompt_of(inputs: object, name: str) -> tuple[Message, ...]:
    """What was asked, from a run's input: messages, a named field with what stands beside it, or text (also JSON)."""
    inputs = unpacked(inputs)
    if isinstance(inputs, Mapping) and "role" not in inputs and "content" not in inputs:
        asked = next((key for key in _QUESTIONS if inputs.get(key)), None)
        if asked is None and len(inputs) == 1:
            asked = next(iter(inputs))
        if asked is None or not inputs[asked]:
            raise RowProblem(f"`{name}` has none of {', '.join(_QUESTIONS)}; it has {names_of(inputs)}")
        return with_history(inputs, asked, name)
    if inputs is None:
        raise RowProblem(f"`{name}` is empty")
    return turns_of(inputs, name)


def with_history(inputs: Mapping[str, object], asked: str, name: str) -> tuple[Message, ...]:
    """The turns of `inputs`: instructions, earlier turns, and the question that its key `asked` holds.

    Raises RowProblem for history without speakers, and for other text that the turns do not hold.
    """
    question = turns_of(unpacked(inputs[asked]), asked if name == "row" else name)
    turns = (*_instructions(inputs, asked, question), *_history(inputs, asked, question, name), *question)
    refuse_beside(inputs, asked, turns, name)
    return turns


def _instructions(inputs: Mapping[str, object], asked: str, question: tuple[Message, ...]) -> tuple[Message, ...]:
    if question[0].role == "system":
        return ()
    given = (unpacked(inputs[key]) for key in INSTRUCTIONS if key != asked and inputs.get(key))
    return tuple(Message("system", text) for text in given if isinstance(text, str))


def _history(inputs: Mapping[str, object], asked: str, question: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    key = next((key for key in HISTORY if key != asked and inputs.get(key)), None)
    if key is None:
        return ()
    value = unpacked(inputs[key])
    turns = _spoken(value, f"{name}.{key}") if isinstance(value, str) else _listed(value, f"{name}.{key}")
    again = len(turns) >= len(question) and turns[-len(question) :] == question
    return turns[: -len(question)] if again else turns


def _listed(value: object, name: str) -> tuple[Message, ...]:
    """Messages; or pairs of a question and its answer, as older chains keep them; or (role, text) pairs."""
    if isinstance(value, Sequence) and value and all(_is_pair(entry) for entry in value):
        turns: list[Message] = []
        for first, second in value:
            role = _SPEAKERS.get(f"{first}".lower())
            turns += [Message(role, second)] if role else [Message("user", first), Message("assistant", second)]
        return tuple(turns)
    return turns_of(value, name)


def _is_pair(entry: object) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2 and all(isinstance(text, str) for text in entry)


def _spoken(text: str, name: str) -> tuple[Message, ...]:
    """Text with a speaker at the beginning of each turn."""
    before, *parts = _SPEAKER.split(text.strip())
    if before.strip() or not parts:
        raise RowProblem(f"`{name}` is text that does not say who speaks; log it as a list of messages")
    said = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_SPEAKERS[who.lower()], words.strip()) for who, words in said)


def refuse_beside(inputs: Mapping[str, object], asked: str, turns: Sequence[Message], name: str) -> None:
    """Raises RowProblem when `inputs` holds text, or context by its name, that the turns do not hold."""
    held = "\n".join(turn.content for turn in turns)
    for key, value in inputs.items():
        if key == asked or key in HISTORY or key in INSTRUCTIONS or not value:
            continue
        if key not in CONTEXT and (_LABELS.search(key.lower()) or not _is_text(value)):
            continue
        if not all(text in held for text in _texts(value)):
            raise RowProblem(
                f"`{name}` has `{key[:40]}`, which is not in the turns, and how the model saw it is not known; "
                "export the model's own call with its messages"
            )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value.split()) > 1


def _texts(value: object) -> list[str]:
    value = unpacked(value)
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        inner = value.get("page_content") or value.get("text") or value.get("content")
        return [inner] if isinstance(inner, str) else ["\x00"]
    return [text for part in value for text in _texts(part)] if isinstance(value, Sequence) else ["\x00"]
