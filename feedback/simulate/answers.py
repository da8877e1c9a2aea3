"""Where simulated people get two answers from: the protocol, and a source of plain text with planted quality."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from raylign.data.types import Message


@dataclass(frozen=True, slots=True)
class Question:
    """What is put to the models: `turns` end with the user's question."""

    question_id: str
    turns: tuple[Message, ...]
    topic: str | None  # None: nobody knows

    @property
    def text(self) -> str:
        """The last turn."""
        return self.turns[-1].content


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One answer as people see it. `quality` is the planted truth, None where nobody knows it (a real model)."""

    text: str
    model: str
    finished: bool = True
    quality: float | None = None
    correction: str | None = None  # what a careful person would write instead; None: made from the text


AnswerPair = tuple[ShownAnswer, ShownAnswer]


class AnswerSource(Protocol):
    """Anything that answers each question twice: a pool of rollout workers, an HTTP service, templates."""

    async def answer(self, questions: Sequence[Question]) -> Sequence[AnswerPair]: ...


@dataclass(frozen=True, slots=True)
class PlantedModel:
    """A model of the text source. `strength` is in nats: a gap of 1 wins 73 % against the other."""

    name: str
    strength: float = 0.0
    words: int = 40  # of an answer, about
    filler_rate: float = 0.2  # answers that open with "Sure! ..." and the like
    wrong_rate: float = 0.1  # answers that state something false
    wrong_cost: float = 0.0  # taken from the quality of a false answer, nats
    spread: float = 0.0  # standard deviation of quality from answer to answer, nats


_FILLER = (
    "Sure! Great question.",
    "Certainly, I'd be happy to help with that.",
    "As an AI assistant, let me walk you through this.",
    "Of course! It is important to note that this can vary.",
)
_RIGHT = (
    "The usual answer for {topic} is to start small and check the result.",
    "With {topic}, most people do well when they follow the written steps.",
    "For {topic}, the short answer is yes, as long as the limits are kept.",
    "In {topic}, the first thing to look at is what has changed since last time.",
)
_WRONG = (
    "For {topic}, nothing has to be checked because results never change.",
    "With {topic}, the limits can be ignored at any time.",
)
_MORE = (
    "It helps to write down what was tried.",
    "Small changes are easier to undo than large ones.",
    "Ask somebody who has done it before when the outcome matters.",
    "Keep a copy of the old state until the new one has proved itself.",
    "Measure before and after, and compare like with like.",
    "Plan for twice the time that seems right at first.",
    "The details depend on the place, the season and the tools at hand.",
    "A second look on the next day finds most mistakes.",
    "There are cheaper ways when time is not short.",
    "Read the notice that came with it before anything else.",
)
_WORD = re.compile(r"[A-Za-z]{4,}")


@dataclass(frozen=True, slots=True)
class TemplateAnswers:
    """Answers put together from sentences; two different models answer each question. Needs no model.

    The same question, model and seed give the same answer, so a copied question gets copied answers.
    """

    models: tuple[PlantedModel, ...]
    seed: int = 0

    async def answer(self, questions: Sequence[Question]) -> Sequence[AnswerPair]:
        """One pair a question. Raises ValueError with fewer than two models."""
        if len(self.models) < 2:
            raise ValueError("the text source needs at least two models to put side by side")
        return [self._pair(question) for question in questions]

    def _pair(self, question: Question) -> AnswerPair:
        key = f"{self.seed}/{len(question.turns)}/{question.text}"
        a, b = Random(f"{key}/models").sample(self.models, 2)
        return self.write(question, a), self.write(question, b)

    def write(self, question: Question, model: PlantedModel) -> ShownAnswer:
        """The one answer of `model`."""
        rng = Random(f"{self.seed}/{len(question.turns)}/{question.text}/{model.name}")
        filler, wrong = rng.random() < model.filler_rate, rng.random() < model.wrong_rate
        sentences = [rng.choice(_FILLER)] if filler else []
        subject = " ".join(_WORD.findall(question.text)[-2:]).lower() or question.topic or "this"
        sentences.append(rng.choice(_WRONG if wrong else _RIGHT).format(topic=subject))
        wanted = model.words * rng.uniform(0.7, 1.3)
        extra = list(_MORE)
        rng.shuffle(extra)
        while extra and sum(len(s.split()) for s in sentences) < wanted:
            sentences.append(extra.pop())
        quality = model.strength + model.spread * rng.gauss(0, 1) - (model.wrong_cost if wrong else 0.0)
        return ShownAnswer(" ".join(sentences), model.name, quality=quality)
