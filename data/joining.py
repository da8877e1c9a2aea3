"""Token ids of text that follows other tokens, in the form that sampling has them: what is there already stays."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raylign.data.row_fields import RowError

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 8  # tokens before a text that decide how its first characters are read back


class TokenJoiner:
    """Of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = sorted((t.content for t in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, added))})") if added else None

    def ids(self, text: str) -> list[int]:
        """A template writes its own special tokens, so none are added: BOS is never doubled."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def continued(self, ids: Sequence[int], text: str, what: str) -> list[int]:
        """`ids` and those of `text`, read back as exactly `text`: some tokenizers put a space before every text."""
        whole = self._read_back(ids, text)
        if whole is not None:
            return whole
        parts = self._added.split(text) if self._added else []
        made: list[int] | None = list(ids) if len(parts) > 1 else None
        for part in filter(None, parts):  # between special tokens: some tokenizers put a space after each
            if made is not None:
                made = self._read_back(made, part)
        if made is None:
            raise RowError(f"the tokenizer cannot write {what} so that it reads back the same (unknown characters?)")
        return made

    def _read_back(self, ids: Sequence[int], text: str) -> list[int] | None:
        """`ids` and those of `text` if they decode to it, else None."""
        if not text:
            return list(ids)
        context = list(ids[-_CONTEXT:])
        before = self.decode(context)
        wanted = {before + text, before + unicodedata.normalize("NFC", text)}
        for anchor in ("", "\n", ":", "a"):
            anchored, alone = self.ids(anchor + text), self.ids(anchor) if anchor else []
            added = anchored[len(alone) :]
            if anchored[: len(alone)] == alone and self.decode([*context, *added]) in wanted:
                return [*ids, *added]
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens included, nothing cleaned up."""
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
