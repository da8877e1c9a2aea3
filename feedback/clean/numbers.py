"""Card and bank account numbers and network addresses, found by checksum, form and surroundings."""

from __future__ import annotations

import ipaddress
import re

from raylign.feedback.clean.finds import Find

_IBANS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
    "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
    "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
_IBAN_LENGTHS = {country: int(length) for country, length in re.findall("([A-Z]{2})([0-9]{2})", _IBANS)}
"""Characters of an IBAN by country (SWIFT's IBAN registry)."""

_NETWORKS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|62\d{14,17}|220[0-4]\d{12}"
)
"""Beginnings and lengths that card networks issue (ISO/IEC 7812)."""

_GROUPS = re.compile(r"\d{4}([ \-\u00a0])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ \-\u00a0])\d{6}\2\d{4,5}|\d+")
_ABOUT_CARDS = re.compile(
    r"(?i)\b(?:card|karte|carte|tarjeta|cart[aã]o|carta|visa|master|amex|pan|karty|kort|kart)|卡|карт"
)
_ID_BEFORE = re.compile(
    r"(?i)(?:\b|_)(?:id|uid|uuid|key|seed|hash|sku|isbn|ean|serial|timestamp|size|bytes|ref)s?[\"']?\s*[:=#]?\s*[\"']?$"
)
_VERSION_BEFORE = re.compile(
    r"(?i)(?:\b(?:v|ver|version|release|rev|build|chapter|section|oid|mask|netmask|agent|chrome|"
    r"firmware)[\"']?\.?\s*[=:]{0,2}\s*|==\s*|[<>~^!]=?\s*)[\"'v]?$"
)
_HOST_BEFORE = re.compile(
    r"(?i)(?:\b(?:ip|ipv4|address|host|server|from|ping|ssh|gateway|client|remote|peer|at|adresse?|dirección)\b|"
    r"地址)[^0-9\n]{0,12}$"
)
_PORT_AFTER = re.compile(r":[0-9]{2,5}\b|/[0-9]{1,2}\b")


def luhn(text: str) -> bool:
    """Whether the digits of a text carry a card number's checksum and are not all the same."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def card(find: Find) -> bool:
    """A number that a card network issues, written as on a card, and no operand, decimal or identifier."""
    digits = re.sub(r"\D", "", find.text)
    if not luhn(digits) or not _NETWORKS.fullmatch(digits) or not _GROUPS.fullmatch(find.text):
        return False
    if _ABOUT_CARDS.search(find.before[-40:]):
        return True
    if find.text.isdigit() and re.search(r"\w[(\[]$", find.before):  # an argument of a call
        return False
    return not find.in_arithmetic and not _ID_BEFORE.search(find.before)


def iban(find: Find) -> int:
    """As many characters as the country's IBANs have, where they carry the checksum (ISO 13616)."""
    wanted = _IBAN_LENGTHS.get(find.text[:2].upper(), 0)
    taken, end = "", 0
    for place, sign in enumerate(find.text):
        if len(taken) == wanted:
            break
        if sign.isalnum():
            taken, end = taken + sign.upper(), place + 1
    follows = find.text[end : end + 1]
    if not wanted or len(taken) != wanted or follows.isalnum():
        return 0
    return end if int("".join(str(int(c, 36)) for c in taken[4:] + taken[:4])) % 97 == 1 else 0


def ipv4(find: Find) -> bool:
    """An address that can belong to somebody, and no version, section, mask or object identifier."""
    try:
        address = ipaddress.IPv4Address(find.text)
    except ValueError:
        return False
    octets = address.packed
    if (
        address.is_loopback
        or address.is_link_local
        or octets[0] in (0, 255)
        or re.match(r"[.\-+]?[0-9A-Za-z]|\.[0-9]", find.after)
    ):
        return False
    if _VERSION_BEFORE.search(find.before) or re.search(r"[\w.\-]$", find.before):
        return False
    if (
        max(octets) < 32 or re.match(r"1\.[0-3]\.|2\.(?:5|16|23)\.", find.text) or address.is_multicast
    ):  # chapters and versions are made of small numbers
        return bool(_HOST_BEFORE.search(find.before) or _PORT_AFTER.match(find.after))
    return not re.match(r"\s*[*×÷^]", find.after)


def ipv6(find: Find) -> bool:
    """An address that can belong to somebody; `1::2` and `be::add` may as well be code."""
    try:
        address = ipaddress.IPv6Address(find.text)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or not any(c.isdigit() for c in find.text):
        return False
    if re.match(r"[\w:]", find.after):
        return False
    groups = [group for group in find.text.split(":") if group]
    known = re.match(r"(?i)(?:[23][0-9a-f]{3}|f[cdef][0-9a-f]{2})$", groups[0])
    return bool(known) and (len(groups) > 2 or not groups[0].isdigit())
