"""What personal data and secrets look like. Patterns are plain enough for Rust's and Python's engines alike."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pattern:
    """One type of thing: `<NAME_1>` stands for the first of it in a conversation.

    Group 1, where there is one, is what is replaced; `real` tells it from what only looks like it.
    """

    name: str
    regex: str
    real: Callable[[str], bool] = lambda text: True


def luhn(text: str) -> bool:
    """Whether the digits of a text carry a card number's checksum and are not all the same."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether a text carries an IBAN's checksum (ISO 13616)."""
    plain = text.replace(" ", "").upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def phone(text: str) -> bool:
    """7 to 15 digits, as the numbering plan allows, and no area of noughts: 10,000-4,000 is a subtraction."""
    return 7 <= sum(c.isdigit() for c in text) <= 15 and not text.startswith("000")


def address(text: str) -> bool:
    """An IP address that can belong to somebody."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (found.is_loopback or found.is_unspecified)


PATTERNS = (
    Pattern("PRIVATE_KEY", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]+?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"),
    Pattern("URL", r"\b[a-zA-Z][a-zA-Z0-9+.\-]{1,12}://[^\s/:@<>]+:[^\s/@<>]+@[^\s<>\"')]+"),
    Pattern("SECRET", r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"),
    Pattern(
        "SECRET",
        r"\b(?:(?:sk|pk|rk)[-_](?:[a-z]+[-_])*[A-Za-z0-9_\-]{16,}|AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}"
        r"|gh[opsur]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_\-]{16,}|xox[abprs]-[A-Za-z0-9\-]{10,}"
        r"|AIza[A-Za-z0-9_\-]{30,}|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_\-]{30,})",
    ),
    Pattern(
        "SECRET",
        r"(?i)\b(?:api[ _-]?key|secret(?:[ _-]?key)?|access[ _-]?token|auth[ _-]?token|password|passwd|passwort)\b"
        r"[\"']?\s*(?:=|:|\bis\b)\s*[\"']?([^\s\"',;<>]{8,})",
        lambda text: any(c.isdigit() for c in text),
    ),
    Pattern("SECRET", r"(?i)\bbearer\s+([A-Za-z0-9_\-.=+/]{20,})"),
    Pattern("EMAIL", r"[A-Za-z0-9._%+\-]+@[A-Za-z0-9](?:[A-Za-z0-9\-]*\.)+[A-Za-z]{2,}"),
    Pattern("IBAN", r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", iban),
    # Not after a digit and a point: a tenth of all long decimals carry the checksum.
    Pattern("CARD", r"(?:^|[^\w.]|[^0-9]\.)([0-9](?:[ \-]?[0-9]){12,18})\b", luhn),
    Pattern("IP", r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b", address),
    Pattern("IP", r"(?i)\b(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}\b", address),
    Pattern(
        "PHONE",
        r"(?:^|[^0-9])(\+[0-9]{1,3}[ \-./]?(?:\(0?[0-9]{1,4}\)[ \-./]?)?[0-9](?:[ \-./]?[0-9]){5,12})\b",
        phone,
    ),
    Pattern("PHONE", r"\([0-9]{3}\) ?[0-9]{3}[\-. ][0-9]{4}\b"),
    Pattern("PHONE", r"\b[0-9]{3}[\-.][0-9]{3}[\-.][0-9]{4}\b"),
    Pattern("PHONE", r"\b0[0-9]{2,4}[ /\-][0-9]{3,}(?:[ \-]?[0-9]{2,})*\b", phone),
)
"""In the order of replacement: what may hold another comes first."""

NAME_INTRODUCED = (
    r"\b(?:[Mm]y name is|[Mm]y name's|[Ii] am called|[Ii]'m called|[Tt]he name is|[Mm]ein Name ist|[Ii]ch hei\u00dfe"
    r"|[Jj]e m'appelle|[Mm]e llamo)\s+([A-Z\u00c0-\u00de][\w'\-]+(?: [A-Z\u00c0-\u00de][\w'\-]+){0,2})"
)
"""A name is only known to be one where its bearer says so; there is no dictionary of names here."""
