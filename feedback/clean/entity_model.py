"""A token-classification model of a local folder: finds names and addresses in texts, long ones in windows.

Any model and tokenizer of transformers' AutoModelForTokenClassification with safetensors; none of their own code runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from raylign.conf.errors import UserError
from raylign.feedback.clean.entities import Span, Token, spans_of
from raylign.feedback.clean.entity_labels import SETTING, Label, labels_in
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

WINDOW = 256
"""Tokens the model reads at a time, at most."""
_OVERLAP = 64  # tokens that two windows of a text share
_BATCH_TOKENS = 8192  # padded


@dataclass(frozen=True, slots=True)
class _Window:
    """A part of a text, tokenised. Only the labels of tokens from `first` to before `last` count."""

    text: int
    token_ids: list[int]
    places: list[tuple[int, int]]  # of each token in the text, in characters
    first: int
    last: int


class EntityModel:
    """Finds spans. Calls with the same texts give the same spans."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labels: Sequence[Label], window: int = WINDOW
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        self._tokenizer = tokenizer
        self._labels = labels
        positions = getattr(model.config, "max_position_embeddings", None) or window
        # Some tables of positions begin behind the padding token, so two of them are never reached.
        self._window = max(8, min(window, tokenizer.model_max_length, positions - 2))
        self._overlap = min(_OVERLAP, self._window // 4)

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """Spans of each text, in order."""
        windows = list(self._windows(texts))
        tokens: list[list[Token]] = [[] for _ in texts]
        marked = dict(self._marked(windows))
        for number, window in enumerate(windows):
            pairs = zip(window.places, marked[number], strict=True)
            tokens[window.text] += [
                Token(start, end, self._labels[label])
                for (start, end), label in list(pairs)[window.first : window.last]
                if end > start
            ]
        return [spans_of(text, found) for text, found in zip(texts, tokens, strict=True)]

    def _windows(self, texts: Sequence[str]) -> Iterator[_Window]:
        """Of two windows that share tokens each has its half of them, where it sees more on either side."""
        if not texts:
            return
        cut = self._tokenizer(
            list(texts), truncation=True, max_length=self._window, stride=self._overlap,
            return_overflowing_tokens=True, return_offsets_mapping=True, return_special_tokens_mask=True,
        )  # fmt: skip
        owners = cut["overflow_to_sample_mapping"]
        half = self._overlap // 2
        for number, owner in enumerate(owners):
            special = cut["special_tokens_mask"][number]
            content = [place for place, mark in enumerate(special) if not mark]
            if not content:
                continue
            before = number > 0 and owners[number - 1] == owner
            after = number + 1 < len(owners) and owners[number + 1] == owner
            yield _Window(
                text=owner,
                token_ids=cut["input_ids"][number],
                places=[
                    (0, 0) if special[at] else tuple(place) for at, place in enumerate(cut["offset_mapping"][number])
                ],
                first=content[0] + (half if before else 0),
                last=content[-1] + 1 - (self._overlap - half if after else 0),
            )

    @torch.inference_mode()
    def _marked(self, windows: Sequence[_Window]) -> Iterator[tuple[int, list[int]]]:
        """Each window's number with the label of each of its tokens; windows of like length go together."""
        order = sorted(range(len(windows)), key=lambda number: -len(windows[number].token_ids))
        padding = self._tokenizer.pad_token_id or 0
        while order:
            longest = len(windows[order[0]].token_ids)
            batch, order = order[: max(1, _BATCH_TOKENS // longest)], order[max(1, _BATCH_TOKENS // longest) :]
            ids = torch.full((len(batch), longest), padding)
            there = torch.zeros((len(batch), longest), dtype=torch.long)
            for row, number in enumerate(batch):
                tokens = windows[number].token_ids
                ids[row, : len(tokens)] = torch.tensor(tokens)
                there[row, : len(tokens)] = 1
            logits = self._model(input_ids=ids.to(self._device), attention_mask=there.to(self._device)).logits
            for number, labels in zip(batch, logits.argmax(-1).tolist(), strict=True):
                yield number, labels[: len(windows[number].token_ids)]


def load_entity_model(folder: Path, told: Mapping[str, str | None], window: int = WINDOW) -> EntityModel:
    """The model of `folder`; `told` says what its labels stand for where their names do not.

    `window`: tokens it reads at a time, at most; what is found should not depend on it.

    Raises UserError for a folder that holds no such model.
    """
    labels = labels_in(folder, told)
    disable_progress_bar()
    try:
        model, loading = AutoModelForTokenClassification.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise nothing more special
        raise UserError(f"{SETTING}={folder}: it cannot be loaded ({' '.join(str(error).split())[:200]}).") from error
    if missing := sorted(loading["missing_keys"]):
        raise UserError(f"{SETTING}={folder}: its weights lack {missing[0]}; it has not been trained to label tokens.")
    if not tokenizer.is_fast:
        raise UserError(f"{SETTING}={folder}: needs a fast tokenizer (tokenizer.json), which knows places in the text.")
    return EntityModel(model, tokenizer, labels, window)
