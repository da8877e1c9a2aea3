"""Keeps secrets out of what a run writes and sends: configuration, overrides and argv.

Three ways to be a secret: the name says so, the value has a known shape, or the value is that of a secret environment
variable. Names that only sound secret (`pad_token`, `max_new_tokens`, `tokenizer`) are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from raylign.conf.secret_names import is_secret_name

REDACTED = "***"

_SECRET_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|wandb_v1_[A-Za-z0-9_]{16,}"
)
_URL_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_URL_QUERY = re.compile(
    r"([?&][^=&\s]*(?:token|key|signature|secret|password|credential)[^=&\s]*=)[^&\s]+", re.IGNORECASE
)
_MIN_SECRET_LENGTH = 8  # shorter environment values ("1", "yes") would blot out ordinary text


@dataclass(frozen=True, slots=True)
class Redactor:
    """Replaces secrets by `***`. `values` are literal secrets, longest first."""

    values: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Knows the values of every environment variable with a secret name."""
        found = {v for k, v in environ.items() if is_secret_name(k) and len(v) >= _MIN_SECRET_LENGTH}
        return cls(tuple(sorted(found, key=len, reverse=True)))

    def text(self, text: str) -> str:
        """A text with known secret values and shapes replaced."""
        for value in self.values:
            text = text.replace(value, REDACTED)
        text = _SECRET_SHAPES.sub(REDACTED, text)
        return _URL_QUERY.sub(rf"\1{REDACTED}", _URL_USER.sub(REDACTED, text))

    def tree(self, value: object) -> object:
        """Nested mappings and sequences, as a configuration is; numbers and None pass through."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {str(k): self._named(str(k), v) for k, v in value.items()}
        if isinstance(value, Sequence):
            return [self.tree(v) for v in value]
        return value

    def arguments(self, arguments: Sequence[str]) -> list[str]:
        """Command line words: `a.b.api_key=x`, `--password=x`, `--password x`."""
        result: list[str] = []
        previous_is_secret_flag = False
        for word in arguments:
            name, equals, _ = word.partition("=")
            if previous_is_secret_flag:
                result.append(REDACTED)
            elif equals and is_secret_name(name):
                result.append(f"{name}={REDACTED}")
            else:
                result.append(self.text(word))
            previous_is_secret_flag = not equals and word.startswith("--") and is_secret_name(word)
        return result

    def _named(self, name: str, value: object) -> object:
        if isinstance(value, str) and value and is_secret_name(name):
            return REDACTED
        return self.tree(value)
