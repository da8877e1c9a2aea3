"""Secrets, distinguished from words, code and examples in the same places: a secret looks like nothing known."""

from __future__ import annotations

import base64
import re

from raylign.feedback.clean.finds import Find

_PROSE = re.compile(
    r"(?i)(?:passwd|password|passphrase|passcode|passwort|kennwort|pwd|pass|contrase[ñn]a|clave|mot de passe|"
    r"senha|has[łl]o|"
    r"пароль|密码|密碼|口令|パスワード|비밀번호|secret|credentials?|pin)[\"'\]]{0,3}\s*(?:[:=：]+>?|\w+|是|は|为)\s*[\"'`]?$"
)
_CODE = re.compile(r"[(\[{}\])$|\\]|->|::|^[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+$|^[./~]|^https?:")
_NAME = re.compile(r"[A-Za-z]+(?:[_\-./]?[A-Za-z]+)*[0-9]{0,2}$")
_SHOUTED = re.compile(r"(?:^|[^A-Za-z0-9])[A-Z][A-Z0-9_]*\s*=\s*[\"'`]?$")
_NO_SECRET = re.compile(
    r"(?i)^(?:none|null|true|false|undefined|your[_\- ].*|example.*|changeme|placeholder|redacted|x{4,}.*|"
    r"\*{3,}.*|\.{3,}|<.*|"
    r"todo|str|int|bytes|string|optional|required|self\..*|os\.environ.*|env\..*|args\..*|config\..*)$"
)
_VARIABLE = re.compile(r"[{}$<>\[\]]|%s|%\(|\*\*|\.\.\.|…")
_CAMEL = re.compile(r"\w*(?:[A-Z][a-z]{2,}){2,}")
_FILES = re.compile(
    r"(?i)\.(?:png|jpe?g|gif|svg|webp|ico|js|ts|tsx|css|py|html?|json|ya?ml|md|txt|pdf|xml|so|dll|T|mT|H|mH)$"
)


def _value(find: Find) -> tuple[str, int]:
    """The candidate without the quotes it stands in, and where it ends in the candidate."""
    text = find.text
    if text[:1] in "\"'`":
        end = text.find(text[0], 1)
        if end < 0:
            return text[1:], len(text)
        if text[end - 1] == "\\" and text.endswith(text[0]):  # an escaped quote inside
            end = len(text) - 1
        return text[1:end], end
    end = len(text.rstrip("\"'`.,)]}"))
    if "\\" in text:  # escaped quotes of JSON in text
        end = min(end, text.index("\\"))
    return text[:end], end


def _mixed(text: str) -> bool:
    return any(c.isdigit() for c in text) and any(c.isalpha() for c in text)


def assigned(find: Find) -> int:
    """The value of something named after a secret, unless it is code, a word or a stand-in."""
    value, end = _value(find)
    quoted = find.text[:1] in "\"'`"
    if (
        len(value) < 6
        or _CAMEL.fullmatch(value)
        or _NO_SECRET.match(value)
        or value.startswith(("${", "$(", "%(", "{{", "<"))
    ):
        return 0
    if _PROSE.search(find.before):  # what people choose themselves may be short, and a word with a figure
        strange = any(not c.isalnum() and c not in "_-." for c in value)
        digits = any(c.isdigit() for c in value)
        real = (digits or (strange and quoted)) and (quoted or not _CODE.search(value))
        return end if real and not _steps(value) else 0
    if not _mixed(value) or len(value) < 8:
        return 0
    if not quoted and _CODE.search(value):
        return 0
    if _SHOUTED.search(find.before) or quoted:
        return end if not _NAME.match(value) else 0
    return end if _random(value) and not _steps(value) else 0


def _steps(value: str) -> bool:
    """An identifier of code: lower-case words and short figures between underscores or dots."""
    return re.fullmatch(r"[a-z]+[0-9]{0,2}(?:[_.][a-z0-9]+)+[:,]?", value) is not None


def _random(value: str) -> bool:
    """Whether letters and digits are mixed as a machine mixes them."""
    runs = re.findall(r"[A-Za-z0-9]{8,}", value)
    if len(value) >= 20 and "." not in value and _mixed(value) and not (value.islower() or value.isupper()):
        return not any(_NAME.match(run) and run.islower() for run in runs)
    return any(_mixed(run) and not _NAME.match(run) for run in runs) or (
        _mixed(value) and any(not c.isalnum() and c not in "_-./" for c in value)
    )


def token(find: Find) -> int:
    """The value of a query parameter that authorises."""
    value = find.text.rstrip(".,")
    return len(value) if len(value) >= 8 and _mixed(value) and not _CODE.search(value) and not _NAME.match(value) else 0


def random_looking(find: Find) -> int:
    """With letters and digits mixed; a name of code with the same beginning is none."""
    return len(find.text) if any(_mixed(run) for run in re.findall(r"[A-Za-z0-9]{12,}", find.text)) else 0


def user_and_password(find: Find) -> int:
    """What a command logs in with; a variable is none."""
    return 0 if _VARIABLE.search(find.text) else len(find.text)


def with_password(find: Find) -> int:
    """A URL that holds a password itself, not the name of one."""
    return 0 if _VARIABLE.search(find.text.split("@")[0]) else len(find.text)


def bearer_like(find: Find) -> int:
    """The token of an authorisation: long and mixed, or base64 with its padding."""
    value = find.text.rstrip(".")
    authorised = re.search(r"(?i)auth", find.before) is not None
    by_word = re.search(r"(?i)(?:bearer|digest|negotiate)\s+$", find.before) is not None
    if not (authorised or by_word) or _CODE.search(value):
        return 0
    if authorised and re.search(r"(?i)basic\s+$", find.before) and _holds_a_colon(value):
        return len(value)
    if authorised and (value.endswith("=") or len(value) >= 20):
        return len(value)
    mixed = _mixed(value) and (len(value) >= 16 or any(c.isupper() for c in value))
    return len(value) if mixed and not _NAME.match(value) else 0


def _holds_a_colon(value: str) -> bool:
    """user:password in base64, as basic authorisation has it."""
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except ValueError:
        return False


def email(find: Find) -> int:
    """An address; a matrix product (q@k.transpose), a decorator, a picture's size and a git remote are none."""
    local, _, domain = find.text.partition("@")
    if re.match(r"[(\[_=]|://", find.after) or _FILES.search(find.text):
        return 0
    if local == "git" and domain:
        return 0
    if find.before.endswith(("//", "@")):
        return 0
    return len(find.text)
