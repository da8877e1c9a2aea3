"""The simulated user's taste: a stated rule, so that what the user wanted is known exactly.

The user likes an answer that is short, direct and finished: one or two complete sentences about what was asked, with
no filler, no lists, no repetition and no made-up words.  The rule is a pure function of the prompt, the answer and
whether the answer ended by itself; it uses only the standard library and needs no model.

Every part is bounded, and the parts that a gibberish, empty or one-word answer fails (`plain`, `topic`, `length`,
`shape`) together outweigh what it could win, so that being short is not enough.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\d[\d.,]*")
_LIST = re.compile(r"^\s*(?:[-*•#]|\d+[.)])\s", re.MULTILINE)
_PLAIN_WORD = re.compile(r"[A-Z]?[a-z]+(?:['\u2019][a-z]+)*|[A-Z]{1,4}|\d[\d.,]*")
_VOWEL = re.compile(r"[aeiouyAEIOUY]")

_OPENERS = (
    "sure", "certainly", "of course", "absolutely", "great question", "good question", "what a", "i'd be happy",
    "i would be happy", "i'm happy", "as an ai", "i'm sorry", "i am sorry", "hello", "hi ", "hey", "well,", "okay",
    "here is", "here's", "here are", "let's", "let me", "the question", "the answer to", "thank you", "yes, ", "no, ",
)  # fmt: skip
_FILLER = (
    "plays a crucial role", "plays a vital role", "play a crucial role", "play a vital role", "it's important to note",
    "it is important to note", "hope this helps", "in conclusion", "for centuries", "a simple yet", "feel free",
    "step-by-step guide", "here are some", "here's a", "here is a", "the world of", "as mentioned",
)  # fmt: skip
_LITTLE_WORDS = (
    "a about after all also an and answer any are as at be because been before briefly but by can could do does for "
    "from had has have he her his how i if in into is it it's its like made make may might more most not of off on "
    "one or other our out over own she should so some such than that the their them then there these they this those "
    "through to too up us use used using very was way we were what when where which while who why will with without "
    "would you your"
)
_FUNCTION_WORDS = frozenset(_LITTLE_WORDS.split())


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each part of the taste counts; `ideal` and `limit` are word counts."""

    length: float = 1.0
    finished: float = 1.0
    shape: float = 0.75
    topic: float = 0.5
    plain: float = 1.0
    filler: float = 0.75
    lists: float = 0.75
    repetition: float = 2.0
    ideal_min: int = 8
    ideal_max: int = 35
    limit: int = 70


def _length(words: int, w: Weights) -> float:
    """1 inside the ideal band, falling in a straight line to -1 at no words and at the limit."""
    if words < w.ideal_min:
        return 2.0 * words / w.ideal_min - 1.0
    if words > w.ideal_max:
        return max(-1.0, 1.0 - 2.0 * (words - w.ideal_max) / (w.limit - w.ideal_max))
    return 1.0


def _plain(words: list[str], answer: str) -> float:
    """From 1 (reads as plain English) down to -1: strange words, strange characters, too few little words."""
    if not words:
        return -1.0
    odd = sum(
        not _PLAIN_WORD.fullmatch(word) or len(word) > 16 or (len(word) > 4 and not _VOWEL.search(word))
        for word in words
    )
    odd += sum(ord(c) > 0x2122 or c in "<>{}[]|\\^~_=@" for c in answer)
    little = sum(word.lower() in _FUNCTION_WORDS for word in words) / len(words)
    return max(-1.0, 1.0 - 8.0 * odd / len(words) - 8.0 * max(0.0, 0.3 - little))


def _repetition(words: list[str], prompt_words: list[str]) -> float:
    """0 when nothing is repeated, up to 1: repeated word pairs, and asking the question back."""
    lower = [word.lower() for word in words]
    pairs = list(pairwise(lower))
    repeated = 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0
    echo = len(prompt_words) > 2 and lower[:3] == prompt_words[:3]
    return min(1.0, 5.0 * max(0.0, repeated - 0.05) + float(echo))


def _on_topic(words: list[str], prompt_words: list[str]) -> bool:
    """Whether any content word of the question returns, compared by its first five letters."""
    asked = {word[:5] for word in prompt_words if word not in _FUNCTION_WORDS and len(word) > 2}
    return not asked or any(word.lower()[:5] in asked for word in words)


def breakdown(prompt: str, answer: str, *, finished: bool, weights: Weights | None = None) -> dict[str, float]:
    """The weighted parts of the score by name; `score` is their sum."""
    w = weights or Weights()
    text = answer.strip()
    words = _WORD.findall(text)
    asked = [word.lower() for word in _WORD.findall(prompt)]
    lower = text.lower()
    filler = lower.startswith(_OPENERS) + sum(phrase in lower for phrase in _FILLER)
    shaped = len(words) > 2 and text[:1].isalnum() and text[:1] == text[:1].upper() and text.endswith((".", "!"))
    return {
        "length": w.length * _length(len(words), w),
        "finished": w.finished * (1.0 if finished else -1.0),
        "shape": w.shape * (1.0 if shaped and "?" not in text else -1.0),
        "topic": w.topic * (1.0 if _on_topic(words, asked) else -1.0),
        "plain": w.plain * _plain(words, text),
        "filler": -w.filler * min(2, filler) / 2,
        "lists": -w.lists * float(bool(_LIST.search(text)) or "\n" in text),
        "repetition": -w.repetition * _repetition(words, asked),
    }


def score(prompt: str, answer: str, *, finished: bool, weights: Weights | None = None) -> float:
    """How much the user likes this answer to this prompt; higher is better, about -4 to 4."""
    return sum(breakdown(prompt, answer, finished=finished, weights=weights).values())
