"""What a named score says of an answer, as a log or a setting tells it. Decided once per name for a whole log.

A score has a name, a scale and a polarity: 5 of 5 stars is good, `toxicity` 1 is not. What is not known of a name is
quarantined with a sentence and never guessed; the setting `reading.scores` says it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from raylign.conf.yaml_text import load_mapping


class Good(Enum):
    """Which end of a score's scale is good; of yes and no, yes is the high one."""

    HIGH = "high"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Scale:
    """The lowest and the highest value there can be."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ScoreSetting:
    """What a person says of a score's name."""

    good: Good = Good.HIGH
    scale: Scale | None = None
    words: Mapping[str, bool] = field(default_factory=dict)  # lower-case word -> whether it is good


@dataclass(frozen=True, slots=True)
class ScoreRead:
    """One line of the table of scores."""

    name: str
    count: int  # values of this name in the log, whoever gave them
    values: tuple[str, ...]  # the most frequent first, at most six
    scale: str  # "1 to 5", "yes or no", "words"; "?" where it is not known
    good: str  # high | low | "?"
    read_as: str  # thumb | rating | choice | quarantined, or several of them
    why: str


def parse_scores(text: str) -> dict[str, ScoreSetting]:
    """`{stars: {scale: [1, 5], good: high}, tone: {words: {kind: good, rude: bad}}}`. Raises ValueError, a sentence."""
    content = load_mapping(text, "a score's name and what it means, as in {stars: {scale: [1, 5], good: high}}")
    return {name: _setting(name, given) for name, given in content.items()}


def _setting(name: str, given: object) -> ScoreSetting:
    if not isinstance(given, dict) or not given or set(given) - {"good", "scale", "words"}:
        raise ValueError(
            f"`{name}`: expected some of scale: [LOW, HIGH], good: high or low, words: {{WORD: good or bad}}"
        )
    if given.get("good", "high") not in ("high", "low"):
        raise ValueError(f"`{name}`: good is `{given['good']}`; expected high or low")
    words = given.get("words", {})
    if not isinstance(words, dict) or not all(said in ("good", "bad") for said in words.values()):
        raise ValueError(f"`{name}`: words must say good or bad for each of your words")
    scale = None
    if "scale" in given:
        ends = given["scale"]
        if (
            not isinstance(ends, list)
            or len(ends) != 2
            or not all(_is_number(end) for end in ends)
            or ends[0] >= ends[1]
        ):
            raise ValueError(f"`{name}`: scale is {ends!r}; expected [LOWEST, HIGHEST]"[:200])
        scale = Scale(float(ends[0]), float(ends[1]))
    meanings = {f"{word}".strip().lower(): said == "good" for word, said in words.items()}
    return ScoreSetting(Good(given.get("good", "high")), scale, meanings)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
