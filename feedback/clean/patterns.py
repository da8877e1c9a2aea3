"""What personal data and secrets look like. Patterns are plain enough for Rust's and Python's engines alike."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raylign.feedback.clean.finds import Find, Real, whole
from raylign.feedback.clean.numbers import card, iban, ipv4, ipv6
from raylign.feedback.clean.phones import CANDIDATE, phone
from raylign.feedback.clean.secrets import (
    assigned,
    bearer_like,
    email,
    random_looking,
    token,
    user_and_password,
    with_password,
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One type of thing: `<NAME_1>` replaces the first of it in a conversation.

    Group 1, where there is one, is the candidate; `real` says how much of it is what it looks like.
    """

    name: str
    regex: str
    real: Real = lambda find: len(find.text)


_OTHER = r"\u00c0-\u024f\u0370-\u03ff\u0400-\u052f\u0590-\u06ff\u0900-\u0dff\u0e00-\u0e7f\u1e00-\u1fff"
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_MAIL = (
    rf"(?:[A-Za-z0-9._%+\-]+|[{_OTHER}A-Za-z0-9._+\-]+|[{_CJK}A-Za-z0-9._\-]{{1,16}})"
    r"(?:@|%(?:25)?40|\uff20|\\u0040| ?[\[({]at[\])}] ?)"
    rf"(?:[A-Za-z0-9{_OTHER}{_CJK}](?:[A-Za-z0-9\-{_OTHER}{_CJK}]*)(?:\.| ?[\[({{](?:dot|punkt|punto|point)[\])}}] ?))+"
    rf"(?:xn--[A-Za-z0-9\-]{{2,}}|[A-Za-z]{{2,24}}|[{_OTHER}]{{2,24}}|[{_CJK}]{{2,6}})"
)
_KEY_WORDS = (
    r"(?:api[ _-]?key|apikey|secret(?:[ _-]?(?:access[ _-]?)?key)?|access[ _-]?key(?:[ _-]?id)?|account[ _-]?key|"
    r"shared[ _-]?access[ _-]?key|private[ _-]?key|signing[ _-]?key|encryption[ _-]?key|(?:access|auth|refresh|"
    r"bearer|api|bot|session|"
    r"id|csrf|webhook|personal)?[ _-]?token|auth[ _-]?key|client[ _-]?secret|credentials?|passwd|password|"
    r"passphrase|passcode|passwort|"
    r"kennwort|pwd|(?:\b|_)pass|contrase[ñn]a|clave|mot de passe|senha|has[łl]o|"
    r"пароль|密码|密碼|口令|パスワード|비밀번호)"
)

PATTERNS = (
    Pattern(
        "PRIVATE_KEY",
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]+?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|$)",
    ),
    Pattern("URL", r"\b[a-zA-Z][a-zA-Z0-9+.\-]{1,30}://[^\s/:@<>\"'`]*:[^\s/@<>\"'`]+@[^\s<>\"')`]+", with_password),
    Pattern(
        "URL",
        r"(?i)\bhttps?://(?:hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/|"
        r"(?:\w+\.)?discord(?:app)?\.com/api/webhooks/|"
        r"[\w.\-]*webhook\.office\.com/|outlook\.office(?:365)?\.com/webhook|hooks\.zapier\.com/hooks/|"
        r"api\.telegram\.org/(?:file/)?bot[0-9]+:|maker\.ifttt\.com/trigger/|chat\.googleapis\.com/v1/spaces/|"
        r"hook\.[\w.]*make\.com/|[\w.\-]+\.logic\.azure\.com|open\.feishu\.cn/open-apis/bot/|"
        r"oapi\.dingtalk\.com/robot/send\?|qyapi\.weixin\.qq\.com/cgi-bin/webhook/)[^\s<>\"')`]{6,}",
    ),
    Pattern(
        "SECRET",
        r"(?i)[?&;](?:x-(?:amz|goog|oss)-(?:signature|credential|security-token)|signature|sig|hmac|token|"
        r"access_token|id_token|"
        r"refresh_token|auth_token|auth|api_?key|apikey|key|secret|client_secret|password|passwd|pwd|awsaccesskeyid|"
        r"key-pair-id|policy|session|sessionid|code|hdnea|jwt)=([^&\s\"'<>)`;]{6,})",
        token,
    ),
    Pattern("SECRET", r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"),
    Pattern(
        "SECRET",
        r"\b(?:sk|pk|rk|ak|whsec|shpat|shpss|dop_v1|doo_v1|xapp|nvapi|gsk|xai|r8|pplx|lin_api|secret|key|tok)[-_]"
        r"(?:[a-z0-9]+[-_])*[A-Za-z0-9_\-]{16,}",
        random_looking,
    ),
    Pattern(
        "SECRET",
        r"\b(?:(?:AKIA|ASIA|AGPA|AIDA|AROA)[0-9A-Z]{16}|gh[opsur]_[A-Za-z0-9]{30,}|"
        r"github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_\-]{16,}|xox[abeprs]-[A-Za-z0-9\-]{10,}|"
        r"AIza[A-Za-z0-9_\-]{30,}|"
        r"hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_\-]{16,}|"
        r"SG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}|"
        r"ya29\.[A-Za-z0-9_\-]{20,}|EAA[A-Za-z0-9]{30,}|sq0[a-z]{3}-[A-Za-z0-9_\-]{20,}|AC[0-9a-f]{32}|SK[0-9a-f]{32}|"
        r"[0-9]{8,10}:AA[A-Za-z0-9_\-]{30,}|AGE-SECRET-KEY-1[A-Z0-9]{30,}|dckr_pat_[A-Za-z0-9_\-]{20,})",
    ),
    Pattern("SECRET", r"(?i)\b(?:bearer|token|basic|digest|negotiate)\s+([A-Za-z0-9_\-.=+/]{12,})", bearer_like),
    Pattern("SECRET", r"(?:-u|--user|--proxy-user)[ =][\"']?([^\s:\"'/]{1,40}:[^\s\"'/]{3,})", user_and_password),
    Pattern(
        "SECRET",
        rf"(?i){_KEY_WORDS}(?:[_\-](?:base|value|id|dev|prod|test|live|staging|"
        rf"[0-9]))?\\?[\"'\]]{{0,3}}\s*(?::=|=>|[:=：]|(?:\b(?:is|was|ist|lautet|est|es|é|jest|это)\b)|是|は|为){{1,2}}\s*"
        r"\\?(\"(?:[^\"\\\n]|\\.){6,80}\"|'[^'\n]{6,80}'|[\"'`]?[^\s,;<>&=][^\s,;<>&]{5,})",
        assigned,
    ),
    Pattern("EMAIL", _MAIL, email),
    Pattern(
        "IBAN", r"\b[A-Za-z]{2}[0-9]{2}(?:[ \-\u00a0]?[A-Za-z0-9]{4}){2,7}(?:[ \-\u00a0]?[A-Za-z0-9]{1,3})?\b", iban
    ),
    Pattern("CARD", r"(?:^|[^\w.])([0-9](?:[ \-\u00a0]?[0-9]){12,18})\b", whole(card)),
    Pattern("IP", r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b", whole(ipv4)),
    Pattern(
        "IP", r"(?i)(?:^|[^\w:.])((?:[0-9a-f]{1,4}:){1,7}(?:(?::[0-9a-f]{1,4}){1,6}|[0-9a-f]{1,4}|:))", whole(ipv6)
    ),
    Pattern("PHONE", CANDIDATE, phone),
)
"""In the order of replacement: what may hold another comes first."""

_CAPITAL = r"[A-Z\u00c0-\u00de\u0410-\u042f\u0401][\w'\-]+"
NAME_INTRODUCED = (
    r"(?:\b(?:[Mm]y (?:full |first |last )?name(?: is|'s|\u2019s|:)|[Ii](?: am|'m|\u2019m) called|"
    r"[Tt]he name is|[Mm]ein Name ist|"
    r"[Ii]ch hei\u00dfe|[Jj]e m['\u2019]appelle|[Mm]on nom est|[Mm]e llamo|[Mm]i nombre es|[Mm]i chiamo|"
    r"[Mm]eu nome \u00e9|"
    r"[Mm]e chamo|[Nn]azywam si\u0119|[Mm]am na imi\u0119|[Mm]ijn naam is|[Ii]k heet|[Jj]ag heter|"
    r"[\u041c\u043c]\u0435\u043d\u044f \u0437\u043e\u0432\u0443\u0442)\s+"
    rf"({_CAPITAL}(?: (?:(?:de|da|van|von|der|del|la|di|bin|al) )*{_CAPITAL}){{0,2}}|"
    rf"[a-z\u00df-\u00ff]{{2,}}(?: [a-z\u00df-\u00ff]{{2,}})?\b)"
    r"|(?:\u6211\u53eb|\u6211\u7684\u540d\u5b57\u662f|\u6211\u59d3\u540d\u662f)([\u4e00-\u9fff]{2,4}))"
)
"""A name is only known to be one where its bearer says so; there is no dictionary of names here."""

_NO_NAME = re.compile(
    r"(?i)^(?:not|no|on|in|at|the|a|an|of|to|for|spelled|spelt|pronounced|wrong|missing|still|also|too|very|so|"
    r"just|already|really|"
    r"listed|written|misspelled|incorrect|correct|there|here|taken|unknown|irrelevant|important|common|rare|"
    r"long|short|what|"
    r"gone|different|cut|never|always|often|shown|changed|displayed|and|but|or|as|only|being|nicht|falsch|pas|"
    r"mal|encore|seulement|"
    r"no|mal|muy|como|como|solo|private|confidential|none|null|it|that|this|up|out|with|from|by|now|longer|more|"
    r"mine|your|kept|"
    r"set|empty|blank|required|used|using|appearing|visible|not|supposed|hard|easy|difficult|nobody|everybody)\b"
)


def named(match: re.Match[str]) -> str | None:
    """The name a bearer gives, without words that go on with the sentence; None where it is none."""
    name = next((group for group in match.groups() if group), "")
    if _NO_NAME.match(name):
        return None
    if name.islower():
        if match.group().lower().startswith("the"):
            return None
        after = match.string[match.end() : match.end() + 1]
        words = name.split()
        if len(words) > 1 and _GOES_ON.fullmatch(words[1]):
            return words[0]
        return name if after in ("", ".", ",", "!", "?", ";", "\n", ")") or len(words) > 1 else None
    return name


_GOES_ON = re.compile(r"and|but|from|i|und|et|y|e|i|aus|de|who|by|or|my|im")


def found(pattern: Pattern, text: str, match: re.Match[str], regions: tuple[str, ...] = ()) -> tuple[int, int]:
    """Where the real part of a match starts and ends; an empty one where it is none."""
    group = 1 if match.re.groups and match.group(1) is not None else 0
    start = match.start(group)
    end = start + pattern.real(Find.at(text, start, match.end(group), regions))
    return (start + 1, end) if end > start and text[start] in "\"'`" else (start, end)  # the opening quote stays
