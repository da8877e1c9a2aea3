"""Values as other tools write them: times, numbers on a scale, words for up and down, words for a side."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime

from raylign.data.types import FinishReason
from raylign.feedback.events import Choice, hash_user
from raylign.feedback.importers.outcome import RowProblem

Hasher = Callable[[object], str | None]
"""A person's raw id to its hash; None and empty text stay None."""

_UP = {"up", "thumbs up", "thumb up", "👍", "good", "positive", "like", "liked", "upvote", "yes", "true", "correct"}
_DOWN = {"down", "thumbs down", "thumb down", "👎", "bad", "negative", "dislike", "disliked", "downvote", "no"}
_DOWN |= {"false", "incorrect", "wrong"}

_SIDES = {
    Choice.A: {"a", "left", "model_a", "response_a", "response1", "response_1", "answer1", "first", "a is better"},
    Choice.B: {"b", "right", "model_b", "response_b", "response2", "response_2", "answer2", "second"},
    Choice.BOTH_GOOD: {"both_good", "both good", "both", "both are good"},
    Choice.BOTH_BAD: {"both_bad", "both bad", "neither", "bothbad", "both are bad", "tie (bothbad)"},
    Choice.SKIPPED: {"skip", "skipped", "can't choose", "cannot choose"},
}
_CHOICES = {word: choice for choice, words in _SIDES.items() for word in words} | {"b is better": Choice.B}

_FINISHED = {"stop", "end_turn", "stop_sequence", "eos", "eos_token", "completed", "complete"}
_CUT = {"length", "max_tokens", "max_output_tokens", "max_length", "token_limit"}

_SIGNS: dict[float, int] = {1: 1, 0: -1, -1: -1}
_HUGE = 1e300  # compared, not converted: a JSON integer may be too large for a float

TIE = ("tie",)
"""The reason an importer notes on a tie that does not say whether both were good: its choice is SKIPPED, because as
`both_good` it would be trained on and as `both_bad` it would count against both."""


def hasher(salt: str) -> Hasher:
    """Hashes each id once; a log has few people and many rows."""
    known: dict[str, str] = {}

    def hashed(raw: object) -> str | None:
        if raw is None or raw == "":
            return None
        if not isinstance(raw, str | int):
            raise RowProblem("the id of a person is neither text nor a number")
        text = f"{raw}"
        if text not in known:
            known[text] = hash_user(text, salt)
        return known[text]

    return hashed


def time_of(raw: object, name: str = "time") -> datetime | None:
    """UTC from ISO 8601 text (UTC where it names no zone), or seconds, milli-, micro- or nanoseconds since 1970."""
    if raw is None or raw == "":
        return None
    if isinstance(raw, datetime):
        return raw.astimezone(UTC) if raw.tzinfo else raw.replace(tzinfo=UTC)
    if isinstance(raw, str) and not raw.replace(".", "", 1).isdigit():
        return _time_of_text(raw, name)
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise RowProblem(f"`{name}` is {type(raw).__name__}; expected a time")
    try:
        seconds = float(raw)
        while 1e11 < abs(seconds) < math.inf:  # seconds reach that in the year 5138
            seconds /= 1000
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise RowProblem(f"impossible time: `{name}` is {str(raw)[:40]}") from error


def _time_of_text(raw: str, name: str) -> datetime:
    try:
        time = datetime.fromisoformat(raw.strip().removesuffix(" UTC"))
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise RowProblem(f"`{name}` is `{raw[:40]}`; expected a time like 2026-03-01T12:00:00Z") from error


def seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    """Negative when the end lies before the start, which the checks on events then name."""
    return (end - start).total_seconds() if start is not None and end is not None else None


def in_order(start: datetime | None, end: datetime | None, what: str) -> None:
    """Raises RowProblem when `end` lies before `start`."""
    if start is not None and end is not None and end < start:
        raise RowProblem(f"impossible times: {what} ends before it starts ({start:%Y-%m-%d %H:%M:%S} first)")


def number_of(raw: object, name: str) -> float:
    """A finite number, also written as text."""
    if isinstance(raw, str):
        try:
            return number_of(float(raw), name)
        except ValueError:
            raise RowProblem(f"`{name}` is `{raw[:40]}`; expected a number") from None
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not -_HUGE < raw < _HUGE:
        raise RowProblem(f"`{name}` is {str(raw)[:40]}; expected a number")
    return float(raw)


def scaled(raw: object, low: float, high: float, name: str) -> float:
    """A rating on the tool's own scale, brought to 0 to 1."""
    number = number_of(raw, name)
    if not low <= number <= high:
        raise RowProblem(f"`{name}` is {number:g}; its scale is {low:g} to {high:g}")
    return (number - low) / (high - low)


def thumb_of(raw: object) -> int | None:
    """+1 or -1 from true and false, 1, 0 and -1, or a word; None when it is none of these."""
    if isinstance(raw, bool):
        return 1 if raw else -1
    if isinstance(raw, int | float):
        return _SIGNS.get(raw)
    if not isinstance(raw, str):
        return None
    word = raw.strip().lower().replace("_", " ").replace("-", " ") if raw.strip() != "-1" else "-1"
    if word in ("1", "+1", "1.0"):
        return 1
    if word in ("0", "-1", "0.0", "-1.0"):
        return -1
    return 1 if word in _UP else -1 if word in _DOWN else None


_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_YES_NO = {"yes": True, "true": True, "no": False, "false": False}


def plain_value(raw: object) -> bool | float | str | None:
    """A score as logged, in JSON or as text in a table's cell: yes or no, a number, a word; None where it is empty."""
    if raw is None or isinstance(raw, bool):
        return raw
    if isinstance(raw, int | float):
        return number_of(raw, "score")
    if not isinstance(raw, str):
        raise RowProblem(f"a score is {type(raw).__name__}; expected a number, yes or no, or a word")
    text = raw.strip()
    if _NUMBER.fullmatch(text):
        return number_of(text, "score")
    return _YES_NO.get(text.lower(), text or None)


def says_good(word: str) -> bool | None:
    """Of a word that is no yes or no: whether it says good or bad by itself; None where it says neither."""
    plain = word.strip().lower().replace("_", " ").replace("-", " ")
    return True if plain in _UP else False if plain in _DOWN else None


def choice_of(raw: object) -> Choice | None:
    """A side or both from the words tools use; None when it is none of them (also for a bare "tie", see TIE)."""
    return _CHOICES.get(raw.strip().lower()) if isinstance(raw, str) else None


_LABELS = {"none": Choice.BOTH_BAD, "none of them": Choice.BOTH_BAD, "none of the above": Choice.BOTH_BAD}
_EQUAL = {"tie", "equal", "same", "draw", "equally good or bad", "about the same", "no preference"}


def label_choice_of(raw: object) -> Choice | None:
    """As `choice_of`, of a question whose answers are labels: "none" stands beside two answers and "both" there."""
    word = raw.strip().lower().replace("_", " ") if isinstance(raw, str) else ""
    return choice_of(raw) or _LABELS.get(word) or choice_of(word)


def is_equal(raw: object) -> bool:
    """A label that prefers neither and does not say whether both were good."""
    return isinstance(raw, str) and raw.strip().lower().replace("_", " ") in _EQUAL


_LANGUAGES = {
    "english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt",
    "russian": "ru", "chinese": "zh", "japanese": "ja", "korean": "ko", "vietnamese": "vi", "indonesian": "id",
    "polish": "pl", "dutch": "nl", "turkish": "tr", "arabic": "ar", "hindi": "hi", "swedish": "sv", "czech": "cs",
}  # fmt: skip


def locale_of(raw: object) -> str | None:
    """BCP 47 from a tag or an English language name; None for names not known here ("unknown", "python")."""
    if not isinstance(raw, str) or not raw:
        return None
    name = raw.strip().lower()
    if name in _LANGUAGES:
        return _LANGUAGES[name]
    tag = raw.strip().replace("_", "-")
    first = tag.split("-")[0]
    return tag if first.isascii() and first.isalpha() and len(first) == 2 else None


CONTENT_ID = r":row-[0-9a-f]{20}$"
"""What ids made by `content_id` look like."""


def content_id(source: str, *parts: str) -> str:
    """An id for a row that has none: the same whenever and wherever the row is read."""
    digest = hashlib.blake2b(digest_size=10)
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        digest.update(part.encode("utf-8", "surrogatepass"))
    return f"{source}:row-{digest.hexdigest()}"


def finish_of(raw: object) -> FinishReason | None:
    """Why a model stopped, in any vendor's word; None for reasons that say nothing of it (a filter, a tool call)."""
    word = raw.strip().lower() if isinstance(raw, str) else ""
    return FinishReason.STOP if word in _FINISHED else FinishReason.LENGTH if word in _CUT else None
