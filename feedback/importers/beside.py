"""What stood beside a question: earlier turns and instructions become turns, other text is not passed over in silence.

How a chain put retrieved context into its prompt is nowhere in its inputs, so such a row is quarantined: a model
trained on it would learn to answer from what it does not see.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set

from raylign.data.types import Message
from raylign.feedback.importers.calls import with_tools
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.turns import names_of, turns_of, unpacked

HISTORY = (
    "chat_history", "history", "conversation_history", "message_history", "messages_history", "dialog_history",
    "dialogue_history", "previous_messages", "past_messages", "prior_messages", "earlier_messages", "previous_turns",
    "prior_turns", "past_turns", "context_messages", "chat_messages", "conversation_messages", "memory", "messages",
    "conversation", "dialogue", "dialog", "turns", "thread", "transcript", "chat",
)  # fmt: skip
INSTRUCTIONS = (
    "system", "system_prompt", "system_message", "system_instruction", "system_instructions", "instructions",
    "developer", "developer_prompt", "developer_message",
)  # fmt: skip
CONTEXT = (
    "context", "contexts", "documents", "docs", "source_documents", "retrieved_documents", "retrieved_contexts",
    "retrieved_docs", "passages", "passage", "references", "reference", "sources", "search_results", "knowledge",
    "chunks", "evidence", "tools", "functions",
)  # fmt: skip
_SEEN = re.compile(
    r"(?:^|_)(?:images?|img|pictures?|photos?|screenshots?|audio|video|files?|attachments?|pdfs?)(?:_|$)"
)
_SHOWN = re.compile(
    r"(?:^|_)(?:images?|img|pictures?|photos?|screenshots?|audios?|videos?|attachments?|pdfs?|tools|functions)(?:_|$)"
)
_RETRIEVED = re.compile(r"^(?:retrieved|rag)_|(?:^|_)(?:contexts?|documents?|docs|passages?|chunks|knowledge)$")
_LABELS = re.compile(
    r"(?:^|_)(?:id|ids|uuid|hash|name|lang|language|locale|model|models|user|session|thread|channel|type|kind|category|"
    r"topic|domain|split|source|date|time|timestamp|created|updated|version|env|environment|tenant|config|settings|"
    r"params|parameters|metadata|tags|temperature|stop|stream|callbacks|url)$"
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
    beside = [] if question[0].role == "system" else _named(inputs, INSTRUCTIONS, asked)
    earlier = _named(inputs, HISTORY, asked)[:1]  # what else looks like a history has to be in the turns
    turns = (*_instructions(inputs, beside), *_history(inputs, earlier, question, name), *question)
    refuse_beside(inputs, {asked, *beside, *earlier, "tools"}, turns, name)
    return with_tools(turns, unpacked(inputs.get("tools")), "tools")


def _instructions(inputs: Mapping[str, object], keys: Sequence[str]) -> tuple[Message, ...]:
    given = (unpacked(inputs[key]) for key in keys)
    return tuple(Message("system", text) for text in given if isinstance(text, str))


def plain(key: str) -> str:
    """A field's name in one spelling: chat_history for chatHistory, Chat-History and chat history."""
    return re.sub(r"[\s\-.]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)).strip("_").lower()


def _named(inputs: Mapping[str, object], names: Sequence[str], asked: str) -> list[str]:
    """Keys of `inputs` that hold something and have one of `names`, in the order of `names`."""
    spelled = {plain(key): key for key in reversed(list(inputs)) if key != asked and inputs[key]}
    return [spelled[name] for name in names if name in spelled]


def _history(
    inputs: Mapping[str, object], keys: Sequence[str], question: tuple[Message, ...], name: str
) -> tuple[Message, ...]:
    if not keys:
        return ()
    value, where = unpacked(inputs[keys[0]]), f"{name}.{keys[0]}"
    turns = _spoken(value, where) if isinstance(value, str) else _listed(value, where)
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
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_SPEAKERS[who.lower()], words.strip()) for who, words in spoken)


def refuse_beside(inputs: Mapping[str, object], read: Set[str], turns: Sequence[Message], name: str) -> None:
    """Raises RowProblem when `inputs` holds words, or context by its name, that the turns do not hold.

    Keys in `read` have become turns.
    """
    held = "\n".join(turn.content for turn in turns)
    for key, value in inputs.items():
        if key not in read and value and _may_be_seen(plain(key), value) and not all(t in held for t in _texts(value)):
            raise RowProblem(
                f"`{name}` has `{key[:40]}`, which is not in the turns, and how the model saw it is not known; "
                "export the model's own call with its messages"
            )


def _may_be_seen(key: str, value: object) -> bool:
    """Whether the model may have been shown a field. Names of labels and single words are about the call itself."""
    if key in CONTEXT or key in HISTORY or key in INSTRUCTIONS or _SEEN.search(key) or _RETRIEVED.search(key):
        return True
    return not _LABELS.search(key) and any(len(text.split()) > 1 for text in _words(unpacked(value)))


def is_context(key: str) -> bool:
    """Whether a field is named after what was looked up for the model."""
    return plain(key) in CONTEXT or _RETRIEVED.search(plain(key)) is not None


def refuse_unread(columns: Mapping[str, object], held: str) -> None:
    """Raises RowProblem when a row of a data set has a column by whose name the model saw more than `held`.

    Of a row whose importer reads the columns of its format alone: instructions, earlier turns, retrieved text, tools
    and images beside them would be lost without a word.
    """
    for key, value in columns.items():
        name = plain(key)
        shown = _SHOWN.search(name) is not None
        told = name in INSTRUCTIONS or name in HISTORY or _RETRIEVED.search(name) is not None
        if not value or not (shown or told) or _LABELS.search(name):
            continue
        texts = [text.strip() for text in _texts(value)]
        if shown or not all(text in held for text in texts):
            raise RowProblem(f"`{key[:40]}` is beside what rows of this format hold, and the model may have seen it")


def _words(value: object) -> Iterator[str]:
    """All text inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _words(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _words(inner)


def is_conversation(value: object) -> bool:
    """Whether a value is a list of messages."""
    value = unpacked(value)
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(e, Mapping) and ("content" in e or "value" in e or "kwargs" in e) for e in value)


def _texts(value: object) -> list[str]:
    value = unpacked(value)
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        inner = value.get("page_content") or value.get("text") or value.get("content") or value.get("value")
        if inner is None and isinstance(kwargs := value.get("kwargs"), Mapping):
            inner = kwargs.get("content")
        return [inner] if isinstance(inner, str) else ["\x00"]
    return [text for part in value for text in _texts(part)] if isinstance(value, Sequence) else ["\x00"]
