"""Text of an environment's in a conversation: what reads like a control token there is encoded as plain text.

Such a text is cut in its middle by a mark before the template sees it. The rendered conversation is encoded up to each
mark by itself, so no tokenizer finds the token, whatever its kind; text without one is encoded as ever.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raylign.data.joining import TokenJoiner
from raylign.data.row_fields import RowError

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase

_CUT = "zq9cut"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
WHAT = "what the environment said"


class PlainText:
    """Of one tokenizer and what its template writes around turns."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, joiner: TokenJoiner, written: str, marks: Sequence[str]
    ) -> None:
        """`written`: a conversation as the template writes it; the added tokens in it are control tokens, as all that
        the tokenizer calls special. `marks`: further texts that an environment must not write."""
        added = {token.content: (i, token.special) for i, token in tokenizer.added_tokens_decoder.items()}
        control = {text: i for text, (i, special) in added.items() if text.strip() and (special or text in written)}
        self._joiner = joiner
        usual = [text for text in control if text == tokenizer.unk_token or _BYTE.fullmatch(text)]  # of plain text, too
        self._ids = frozenset(control.values()) - {control[text] for text in usual}
        self._texts = _any_of([text for text in control if text not in usual])
        self._cut_in = _any_of([text for text in (*control, *marks, _CUT) if len(text) > 1])

    def hidden(self, text: str) -> str:
        """`text` with a mark in each of the texts that it must not write."""
        return self._cut_in.sub(lambda found: _halves(found[0]), text)

    def continued(self, ids: Sequence[int], text: str) -> list[int]:
        """`ids` and those of `text`, in which an environment's words are hidden. Raises RowError for words that the
        tokenizer cannot write, or makes a control token of all the same (by its normalisation)."""
        made = list(ids)
        for part in text.split(_CUT):
            made = self._joiner.continued(made, part, WHAT) if made else self._joiner.ids(part)
        if sum(token in self._ids for token in made[len(ids) :]) > len(self._texts.findall(text)):
            raise RowError("it holds a control token that the tokenizer cannot write as plain text")
        return made


def _halves(text: str) -> str:
    return f"{text[: len(text) // 2]}{_CUT}{text[len(text) // 2 :]}"


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """One that matches nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
