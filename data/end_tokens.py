"""Where an answer ends: the tokens at which the engine stops, and the one that a chat template writes after a turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from raylign.data.row_fields import RowError
from raylign.data.templates import ChatTemplate
from raylign.data.types import Message

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase


class EndTokens:
    """The end tokens of one tokenizer: its EOS, what generation_config.json lists, and the template's own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.eos_id = int(tokenizer.eos_token_id)
        ids = {self.eos_id, *_listed(tokenizer.name_or_path)}
        written = _of_template(tokenizer) if tokenizer.chat_template is not None else set()
        ids |= written
        self.usual_id = next(iter(written), self.eos_id)  # the one that ends a trained answer
        self._texts = {str(tokenizer.convert_ids_to_tokens(i)): i for i in ids if i < len(tokenizer)}
        self.ids = frozenset(self._texts.values())
        """Where an engine has to stop, and the one that ends a trained answer among them."""

    def first(self, text: str) -> tuple[int, int, int] | None:
        """Start, end and id of the first end token in `text`; None when it holds none."""
        found = [(text.index(end), -len(end), token) for end, token in self._texts.items() if end in text]
        if not found:
            return None
        start, length, token = min(found)
        return start, start - length, token


def _listed(folder: str) -> set[int]:
    """`eos_token_id` of the model folder's generation_config.json, or of its config.json without one, as vLLM reads it:
    one id or a list; empty without either."""
    path = Path(folder or ".").expanduser()
    file = next((f for n in ("generation_config.json", "config.json") if (f := path / n).is_file()), None)
    if not folder or file is None:
        return set()
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(read, dict):
        return set()
    text = read.get("text_config")
    listed = read.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
    return {i for i in (listed if isinstance(listed, list) else [listed]) if isinstance(i, int)}


def _of_template(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The special token that the template writes after an answer of its own making."""
    template, mark = ChatTemplate(tokenizer), "answer7"
    try:
        whole = template.render((Message("user", "a"), Message("assistant", mark)), "", open_answer=False)
    except RowError:
        return set()
    found_mark, rest = whole.lower().rfind(mark), ""
    if found_mark >= 0:  # a template may change the case
        rest = whole[found_mark + len(mark) :]
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = [(rest.index(text), -len(text), i) for text, i in special.items() if text in rest]
    return {min(found)[2]} if found else set()
