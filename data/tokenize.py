"""Text to token ids, once: the prompt as sampling gets it, the answer's own ids after it, and which tokens it wrote.

What is sampled at run time is prompt ids followed by response ids up to and with the end token. Training rows have
exactly that form: nothing merges over the boundary, so a reward model is trained on what it will be asked to score.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raylign.conf.errors import ModelLoadError
from raylign.data.templates import prints_questions

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """A prompt and its answer as one sequence."""

    token_ids: tuple[int, ...]
    prompt_tokens: int  # the answer is token_ids[prompt_tokens:], end token included
    others: tuple[tuple[int, int], ...] = ()  # [start, end) in the answer that others wrote (tool results, questions)

    @property
    def mask(self) -> list[bool]:
        """True for the tokens that the assistant wrote."""
        mask = [i >= self.prompt_tokens for i in range(len(self.token_ids))]
        for start, end in self.others:
            for i in range(self.prompt_tokens + start, min(self.prompt_tokens + end, len(mask))):
                mask[i] = False
        return mask

    def without_first(self, cut: int) -> EncodedAnswer | None:
        """Without the prompt's first `cut` tokens; None when not even one prompt token would be left."""
        if cut >= self.prompt_tokens:
            return None
        return EncodedAnswer(self.token_ids[cut:], self.prompt_tokens - cut, self.others)


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One sequence of which some tokens are trained."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]  # of each token's loss; 0: not trained

    def without_first(self, cut: int) -> EncodedText | None:
        """Without the first `cut` tokens; None when that takes a trained one, or leaves nothing before the first."""
        if any(self.weights[: cut + 1]):
            return None
        return EncodedText(self.token_ids[cut:], self.weights[cut:])


def load_tokenizer(folder: str, chat_template: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, without running code from it. `chat_template`: takes the place of its own.

    Raises ModelLoadError for a folder without one, or one without character offsets (only fast tokenizers have them).
    """
    from transformers import AutoTokenizer

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ModelLoadError(f"{folder}: there is no such folder; give a Hugging Face model folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more special
        reason = " ".join(str(error).split())[:200]
        raise ModelLoadError(f"{folder}: the tokenizer cannot be loaded ({reason}).") from error
    if not tokenizer.is_fast:
        raise ModelLoadError(
            f"{folder}: needs a fast tokenizer (tokenizer.json); this one is {type(tokenizer).__name__}."
        )
    if tokenizer.eos_token_id is None:
        raise ModelLoadError(f"{folder}: the tokenizer names no eos_token, so no answer could ever end; set one.")
    if chat_template:
        tokenizer.chat_template = chat_template
    if tokenizer.chat_template is not None and not prints_questions(tokenizer):
        raise ModelLoadError(
            f"{folder}: the chat template does not print what the user says, so every question would vanish; correct "
            "it, or set data.chat_template."
        )
    return tokenizer
