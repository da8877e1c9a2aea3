"""What a reward model reads of a sample: the policy's token ids, or text in its own template, tokens and end tokens.

Text is for policies of another family, whose token ids would mean other words, and for a server that is sent text.
Both have the form that the model was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from raylign.conf.schema import Device, Precision
from raylign.data.encoder import Encoder
from raylign.data.row_fields import RowError, template_variables
from raylign.data.tokenize import EncodedAnswer, load_tokenizer
from raylign.data.types import Completion, FinishReason, Message, Prompt
from raylign.reward.heads import Judged
from raylign.reward.interfaces import RewardRuleError
from raylign.reward.model_scorer import ModelScorer
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scorable:
    """One sequence as the model reads it."""

    token_ids: tuple[int, ...]
    prompt_tokens: int  # answers to one prompt are scored side by side, which costs less


class TokenScorer:
    """Reads the policy's token ids as they are: a reward model with the policy's tokenizer and template."""

    def __init__(
        self, folder: str, *, precision: Precision, device: Device, micro_batch_tokens: int, ranks: int = 1
    ) -> None:
        """As ModelScorer."""
        self._model = ModelScorer(
            folder, precision=precision, device=device, micro_batch_tokens=micro_batch_tokens, ranks=ranks
        )

    def sampled(self, prompt: Prompt, completion: Completion) -> Scorable:
        """Raises RewardRuleError when it is longer than the model's context."""
        return Scorable(self._model.sequence(prompt, completion), len(prompt.token_ids))

    def score(self, sequences: Sequence[Scorable]) -> list[float]:
        """One score a sequence, in order; may be non-finite."""
        return self._model.score([s.token_ids for s in sequences], [s.prompt_tokens for s in sequences])

    def judged(self, sequences: Sequence[Scorable]) -> list[Judged]:
        """Mean and spread of the ensemble's heads. Raises ModelLoadError for a model without one."""
        return self._model.judged([s.token_ids for s in sequences], [s.prompt_tokens for s in sequences])


class TextScorer:
    """A score depends on its own text alone."""

    def __init__(
        self,
        folder: str,
        *,
        precision: Precision,
        device: Device,
        micro_batch_tokens: int,
        ranks: int = 1,
        today: date | None = None,
    ) -> None:
        """As ModelScorer. `today`: the date that the template prints; None: this day."""
        self._encoder = Encoder(load_tokenizer(folder), today=today)
        self._model = ModelScorer(
            folder, precision=precision, device=device, micro_batch_tokens=micro_batch_tokens, ranks=ranks
        )

    def sampled(self, prompt: Prompt, completion: Completion) -> Scorable:
        """What another model was sent and answered, its tools and documents included. Raises RewardRuleError."""
        columns = json.loads(prompt.columns) if prompt.columns else {}
        shared = {name: columns[name] for name in ("tools", "documents") if name in columns}
        finished = completion.finish_reason is FinishReason.STOP
        try:
            variables = template_variables(shared)
        except RowError as error:
            raise RewardRuleError(f"the reward model cannot read it: {error}") from error
        return self.conversation(prompt.messages, completion.text, finished=finished, variables=variables)

    def conversation(
        self, messages: Sequence[Message], answer: str, *, finished: bool, variables: str = ""
    ) -> Scorable:
        """An answer to a conversation. A finished one ends with one end token, a cut one with none.

        Raises RewardRuleError when the template refuses the turns, or it is longer than the model's context.
        """
        try:
            side = _side(messages, self._encoder)
            encoded = self._encoder.encode_reply(side, answer, finished=finished, variables=variables)
        except RowError as error:
            raise RewardRuleError(f"the reward model cannot read it: {error}") from error
        return self._scorable(encoded)

    def rendered(self, text: str, prompt: str = "") -> Scorable:
        """Text that has the template in it already. `prompt`: what it begins with, if that is known.

        Raises RewardRuleError when nothing of the template is in it, or it is longer than the model's context.
        """
        try:
            encoded = self._encoder.encode_rendered(text, prompt if text.startswith(prompt) else "")
        except RowError as error:
            raise RewardRuleError(f"the reward model cannot read it: {error}") from error
        return self._scorable(encoded)

    def score(self, sequences: Sequence[Scorable]) -> list[float]:
        """One score a sequence, in order; may be non-finite."""
        return self._model.score([s.token_ids for s in sequences], [s.prompt_tokens for s in sequences])

    def judged(self, sequences: Sequence[Scorable]) -> list[Judged]:
        """Mean and spread of the ensemble's heads. Raises ModelLoadError for a model without one."""
        return self._model.judged([s.token_ids for s in sequences], [s.prompt_tokens for s in sequences])

    def features(self, sequences: Sequence[Scorable]) -> Tensor:
        """What the model's head reads of each sequence, `[S, H]` float32."""
        return self._model.features([s.token_ids for s in sequences], [s.prompt_tokens for s in sequences])

    @property
    def head(self) -> Tensor:
        """The trained head, `[H]` float32."""
        return self._model.head

    def _scorable(self, encoded: EncodedAnswer) -> Scorable:
        self._model.check_length(encoded.token_ids)
        return Scorable(encoded.token_ids, encoded.prompt_tokens)


def read_by(encoder: Encoder, messages: Sequence[Message], answer: str) -> EncodedAnswer:
    """A finished answer as a reward model with this tokenizer reads it. Raises RowError when it cannot."""
    return encoder.encode_reply(_side(messages, encoder), answer)


def _side(messages: Sequence[Message], encoder: Encoder) -> tuple[Message, ...] | str:
    """Turns for a template; the only turn's text for a model that has none."""
    if encoder.has_template or len(messages) != 1:
        return tuple(messages)
    return messages[0].content
