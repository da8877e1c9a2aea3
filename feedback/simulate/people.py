"""Simulated people: what they like, how carefully they judge, who they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Protocol

from raylign.feedback.events import Choice, Side
from raylign.feedback.simulate.answers import ShownAnswer
from raylign.reward.taste import Weights, score


def prefers_first(gap: float, *, noise: float, draw: float) -> bool:
    """Bradley and Terry's choice: True with probability sigmoid(gap / noise). `draw` is uniform in [0, 1)."""
    if noise == 0:
        return gap > 0
    return draw < 1 / (1 + math.exp(-max(-50.0, min(50.0, gap / noise))))


class Taste(Protocol):
    """How much a person likes an answer; higher is better."""

    def __call__(self, question: str, answer: ShownAnswer) -> float: ...


@dataclass(frozen=True, slots=True)
class StatedRule:
    """The demo's rule (reward.taste): short, direct, plain, finished."""

    weights: Weights | None = None

    def __call__(self, question: str, answer: ShownAnswer) -> float:
        """About -4 to 4."""
        return score(question, answer.text, finished=answer.finished, weights=self.weights)


@dataclass(frozen=True, slots=True)
class PlantedQuality:
    """The quality that the answer source planted, plus a pull towards long answers (nats for e times the length)."""

    length_pull: float = 0.0

    def __call__(self, question: str, answer: ShownAnswer) -> float:
        """Raises ValueError for an answer whose source planted none."""
        if answer.quality is None:
            raise ValueError(f"{answer.model}: this answer source plants no quality; use another taste")
        return answer.quality + self.length_pull * math.log(max(1, len(answer.text)))


@dataclass(frozen=True, slots=True)
class Habits:
    """How a person judges. The defaults are an honest, fallible person."""

    noise: float = 1.0  # Bradley-Terry, in units of taste; 0: the better answer always wins
    flip_rate: float = 0.0  # chance of naming the other answer after all
    left_pull: float = 0.0  # taste units the left answer gets for standing left
    always_left: bool = False
    always_up: bool = False  # thumbs and ratings
    seconds: float = 14.0  # median time to judge; the spread is a factor of about 1.6
    tie_gap: float = 0.0  # tastes nearer than this are called a tie


@dataclass(frozen=True, slots=True)
class Persona:
    """A kind of user."""

    name: str
    locale: str = "en-US"
    surface: str = "web"
    topics: tuple[str, ...] = ()  # what they ask about; empty: anything
    share: float = 1.0  # how many of the users, relative to the other personas


@dataclass(frozen=True, slots=True)
class Person:
    """A user or an annotator. `name` is the raw id: logs carry its hash only."""

    name: str
    persona: Persona
    taste: Taste
    habits: Habits

    def choose(self, question: str, a: ShownAnswer, b: ShownAnswer, left: Side, rng: Random) -> Choice:
        """Which answer is better. Always takes three draws, so that one habit does not move the others' luck."""
        draw, slip, bad = rng.random(), rng.random(), rng.random()
        if self.habits.always_left:
            return Choice.A if left is Side.A else Choice.B
        like_a, like_b = self.taste(question, a), self.taste(question, b)
        gap = like_a - like_b
        if abs(gap) < self.habits.tie_gap:
            return Choice.BOTH_BAD if bad < 0.5 - 0.15 * (like_a + like_b) else Choice.BOTH_GOOD
        gap += self.habits.left_pull if left is Side.A else -self.habits.left_pull
        first = prefers_first(gap, noise=self.habits.noise, draw=draw) != (slip < self.habits.flip_rate)
        return Choice.A if first else Choice.B

    def likes(self, question: str, answer: ShownAnswer, rng: Random) -> bool:
        """A thumb: up where taste, with noise, is above 0."""
        draw, slip = rng.random(), rng.random()
        if self.habits.always_up:
            return True
        up = prefers_first(self.taste(question, answer), noise=self.habits.noise, draw=draw)
        return up != (slip < self.habits.flip_rate)

    def rate(self, question: str, answer: ShownAnswer, rng: Random) -> float:
        """One to five stars as a number in [0, 1]."""
        wobble = rng.gauss(0.0, 1.0)
        if self.habits.always_up:
            return 1.0
        liking = self.taste(question, answer) + 0.5 * self.habits.noise * wobble
        return round(4 / (1 + math.exp(-liking))) / 4

    def judging_seconds(self, rng: Random) -> float:
        """Log-normal around the habit's median, to the tenth."""
        return round(self.habits.seconds * math.exp(0.45 * rng.gauss(0.0, 1.0)), 1)
