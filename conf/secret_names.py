"""Which names say that their value is a secret."""

from __future__ import annotations

import os
import re

_SECRET_WORDS = frozenset({"secret", "password", "passwd", "credential", "credentials", "apikey", "auth", "bearer"})
_TEXT_TOKENS = frozenset({"pad", "eos", "bos", "unk", "mask", "sep", "cls", "image", "end"})


def is_secret_name(name: str) -> bool:
    """Whether the last part of a dotted name says so; `pad_token`, `max_new_tokens` and `tokenizer` do not."""
    words = [w for w in re.split(r"[^a-z0-9]+", name.rsplit(".", 1)[-1].lower()) if w]
    if not words:
        return False
    if _SECRET_WORDS & set(words):
        return True
    if words[-1] == "key":
        return len(words) > 1
    return words[-1] == "token" and not (len(words) > 1 and words[-2] in _TEXT_TOKENS)


def environment_value(name: str, default: str | None = None) -> str | None:
    """What `${oc.env:NAME}` and `${oc.env:NAME,default}` stand for in settings, which are written to the run folder.

    Raises ValueError for a name that says secret, and for a variable that is not set and has no default.
    """
    if is_secret_name(name):
        raise ValueError(
            f"${{oc.env:{name}}} is a secret by its name, and settings are written to files; leave the variable in the "
            "environment, where what needs it looks for it"
        )
    if name not in os.environ and default is None:
        raise ValueError(
            f"${{oc.env:{name}}}: the environment has no such variable; set it, or give a default after a comma"
        )
    return os.environ.get(name, default)
