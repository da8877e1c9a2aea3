"""Phone numbers, recognised by the countries' numbering plans (phonenumbers, Google's libphonenumber).

Three ways in: with a country code (+ or 00); after a word for phoning, as any number of the regions looked at; and
without such a word only as a number is written in its country ((212) 555-0187, 06 12 34 56 78, 089/1234567). Digits in
a sum, a date, a version or an identifier are none.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

import phonenumbers
from raylign.feedback.clean.finds import Find

REGIONS = (
    "US", "GB", "DE", "FR", "ES", "IT", "CN", "IN", "JP", "BR", "AT", "CH", "NL", "PL", "SE", "MX", "AU", "KR", "RU",
    "TR",
)  # fmt: skip
"""Looked at in every log, besides the countries of its locales."""

_NEXT = r"(?:(?: ?[\-\u2010-\u2014./] ?|[ \u00a0]{1,2}|\) ?| ?\()?[0-9])"
CANDIDATE = rf"(?:^|[^0-9A-Za-z_.+\u00c0-\u024f])(\+?(?:\([0-9]{{2,5}}\){_NEXT}{{4,14}}|[0-9]{_NEXT}{{6,16}}))"
"""Seven digits or more with the signs that people put between them; group 1 is the candidate. Rust and Python."""

_PHONING = re.compile(
    r"(?i)(?:\b(?:(?:tele|mobile |cell |smart)?phone|tel|t[ée]l[ée]fon\w*|telefoon\w*|telef\w+|m[óo]vil|"
    r"mobil\w*|handy\w*|cell(?:ulare|ular|"
    r"ulaire)?|ph|whats ?app|viber|sms|fax|portable|celular|komórk\w+|hotline|(?:call|ring|text|reach|dial|"
    r"phone)(?:ed)? (?:me|us|him|"
    r"her|them|back)|dial|(?:my|your|his|her|our|their|contact) number|(?:me )?(?:rap)?pele[rz]?|appelle[rz]?|"
    r"joindre|mon num[ée]ro|"
    r"ll[áa]ma\w*|mi n[úu]mero|contact[ao]?\w*|rufen?|anruf\w*|erreich\w*|ruf|meine nummer|chiama\w*|numero|"
    r"n[úu]mero|ligue|liga\w*|"
    r"dzwo[ńn]\w*|zadzwo[ńn]\w*|numer|bel(?:len)?|nummer|ring|reach\w*|call)\b|电话|電話|手机|手機|号码|号碼|致电|联系|微信|携帯|番号|전화|"
    r"번호|연락|тел|звон|номер|моб|هاتف|جوال|اتصل|फ़ोन|फोन|मोबाइल|नंबर|☎|📞|📱)[^0-9+(\n]{0,28}$"
)
_PHONED = re.compile(
    r"(?i)[ ,]+(?:is|es|ist|est|é|è|jest|to|\W)* *(?:my|mi|meine?|mon|il mio|meu|mój)\b[^0-9\n]{0,12}\b(?:phone|"
    r"number|tel|mobil|cell|handy|"
    r"portable|whatsapp|móvil|celular|numéro|número|numero|nummer)"
)
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:[ \u00a0.][0-9]{3})+")
_DATE = re.compile(
    r"(?:(?:19|20)[0-9]{2}[\-./ ][0-9]{1,2}[\-./ ][0-9]{1,2}|[0-9]{1,2}[\-./ ][0-9]{1,2}[\-./ ](?:19|"
    r"20)[0-9]{2})(?![0-9])"
)
_NUMBERED = re.compile(
    r"(?i)\b(?:issn|isbn|doi|pp?|pages?|vol|arxiv|rfc|pmid|zip|invoice|order|ticket|tracking)[.:# ]*$"
)
_NORTH_AMERICA = re.compile(r"(?:\(?[2-9][0-9]{2}\)?[ \-.]|\([2-9][0-9]{2}\))[2-9][0-9]{2}[\-.][0-9]{4}")
_NATIONAL = re.compile(
    r"\(?0[1-9][0-9]*\)?(?: ?[\-/.] ?| )[0-9]|1[3-9][0-9][ \-][0-9]{4}[ \-][0-9]{4}$|\([0-9]{2,4}\) ?[0-9]"
)
_INSIDE = re.compile(r"[0-9A-Za-z_][\-/:.]$")
_GOES_ON = re.compile(r"[A-Za-z_@]|[\-/:][A-Za-z0-9]")
_OPERAND = re.compile(r"[0-9)\]}]\s*$")
_PRICE = re.compile(r"(?:[$€£¥*]|(?:^|[^A-Za-z_])=)\s*$")
_SUM = re.compile(r"\s*[=*×÷^%]|\s?[+\-−/] ?[0-9(]")
_MORE_DIGITS = re.compile(r"[ \-./:,]?[0-9]|[ ][0-9a-fA-F]{2}\b")


def phone(find: Find) -> int:
    """How much of a candidate is a phone number."""
    text, regions = find.text, (*find.regions, *REGIONS)
    if _GOES_ON.match(find.after):
        return 0
    if text.startswith("+"):
        return 0 if _OPERAND.search(find.before) else _longest(text, ())
    if _INSIDE.search(find.before):
        return 0
    if _PRICE.search(find.before) or _SUM.match(find.after) or _DATE.match(text) or _NUMBERED.search(find.before):
        return 0
    if _PHONING.search(find.before) or _PHONED.match(find.after):
        return _longest(text, regions)
    return 0 if find.in_arithmetic else _alone(find, regions)


def _alone(find: Find, regions: tuple[str, ...]) -> int:
    """Without a word for phoning: only as it is written in its country, and no figure of a row of figures."""
    text = find.text
    if text.startswith("00") and not text.isdigit():
        return len(text) if _valid(text, ()) else 0
    in_a_row = _MORE_DIGITS.match(find.after) or re.search(r"[0-9][ ,;]\s*$", find.before) or _counts_up(text)
    if in_a_row or _THOUSANDS.fullmatch(text):
        return 0
    if _NORTH_AMERICA.fullmatch(text):
        return len(text) if _valid(text, ("US",)) else 0
    long_enough = sum(c.isdigit() for c in text) > 8
    return len(text) if long_enough and _NATIONAL.match(text) and _as_written(text, regions) else 0


def _longest(text: str, regions: tuple[str, ...]) -> int:
    """The longest beginning of whole groups of digits that is a number; what stands after it is something else."""
    ends = [match.end() for match in re.finditer(r"[0-9](?![0-9])", text)]
    for end in reversed(ends):
        if sum(c.isdigit() for c in text[:end]) < 7:
            break
        if _valid(text[:end], regions):
            return end
    return 0


@lru_cache(maxsize=1 << 16)
def _valid(text: str, regions: tuple[str, ...]) -> bool:
    """Whether a numbering plan has the number; with a country code that country's, else any region's."""
    plain = text
    if not plain.startswith("+") and plain.startswith("00"):
        plain, regions = "+" + plain[2:].lstrip(" -"), ()
    return any(_parsed(plain, region) is not None for region in (regions or ("ZZ",)))


def _parsed(text: str, region: str) -> phonenumbers.PhoneNumber | None:
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
    return number if phonenumbers.is_valid_number(number) else None


@lru_cache(maxsize=1 << 16)
def _as_written(text: str, regions: tuple[str, ...]) -> bool:
    """Whether the first group is a region's own: a whole area code, or the groups are those it is written in."""
    groups = re.findall(r"[0-9]+", text)
    for region in regions:
        number = _parsed(text, region)
        if number is None:
            continue
        usual = re.findall(r"[0-9]+", phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL))
        if groups == usual or (groups[0] == usual[0] and len(groups[0]) > 2):
            return True
    return False


def _counts_up(text: str) -> bool:
    """01 02 03 04 05 and the like: a row of figures, whatever country might issue it."""
    steps = [int(group) for group in re.findall(r"[0-9]+", text)]
    return len(steps) > 2 and len({b - a for a, b in pairwise(steps)}) == 1
