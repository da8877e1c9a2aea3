"""Environments that somebody serves, as `environment=PROTOCOL:URL` names them. Pure: standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raylign.conf.own_code import is_own

OPENENV, NEMO_GYM = "openenv", "nemo_gym"
_NAMED = re.compile(rf"({OPENENV}|{NEMO_GYM}):(http|ws)(s?)(://[^/\s?#]+[^\s?#]*)")


@dataclass(frozen=True, slots=True)
class Address:
    """A server of environments."""

    protocol: str  # OPENENV or NEMO_GYM
    url: str  # http or https, without a slash at its end; paths of the protocol are appended


def is_class(name: str) -> bool:
    """True for a class of the user's."""
    return is_own(name) and served_address(name) is None


def served_address(name: str) -> Address | None:
    """None for an environment that is not served."""
    found = _NAMED.fullmatch(name)
    if found is None:
        return None
    protocol, _, secure, rest = found.groups()
    base = rest.rstrip("/").removesuffix("/ws") if protocol == OPENENV else rest.rstrip("/")
    return Address(protocol, f"http{secure}{base}")
