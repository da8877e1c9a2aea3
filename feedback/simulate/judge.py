"""What people do with two answers: choose between them, or judge the first by a thumb, stars or a correction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random

from raylign.data.types import FinishReason
from raylign.feedback.events import Choice, Event, EventKind, Side, hash_user
from raylign.feedback.simulate.answers import AnswerPair, Question, ShownAnswer
from raylign.feedback.simulate.people import Person

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_OPENERS = ("sure", "certainly", "of course", "as an ai", "great question", "it is important")
_REASONS = ("too long", "not what I asked", "wrong", "too much filler")


@dataclass(frozen=True, slots=True)
class SignalMix:
    """How often a question gets which kind of feedback; shares need not sum to 1."""

    side_by_side: float = 1.0
    thumb: float = 0.0
    rating: float = 0.0
    correction: float = 0.0


@dataclass(slots=True)
class Judge:
    """Collects the events of one simulation."""

    mix: SignalMix
    panel: Sequence[Person]
    judges_per_pair: int
    salt: str
    events: list[Event] = field(default_factory=list)
    better: dict[str, str] = field(default_factory=dict)

    def judge(
        self, question: Question, pair: AnswerPair, user: Person, when: tuple[str, int, datetime], rng: Random
    ) -> Choice:
        """Log what is said of `pair` at `when` (conversation, turn, moment). Returns which answer goes on."""
        shares = (self.mix.side_by_side, self.mix.thumb, self.mix.rating, self.mix.correction)
        kind = rng.choices(tuple(EventKind), shares)[0]
        base = self._base(question, pair, user, when, kind)
        if kind is EventKind.SIDE_BY_SIDE:
            return self._side_by_side(base, question, pair, user, rng)
        answer = pair[0]
        seconds = user.judging_seconds(rng)
        thumb = rating = corrected = None
        reasons: tuple[str, ...] = ()
        if kind is EventKind.THUMB:
            thumb = 1 if user.likes(question.text, answer, rng) else -1
            reasons = () if thumb > 0 else (rng.choice(_REASONS),)
        elif kind is EventKind.RATING:
            rating = user.rate(question.text, answer, rng)
        else:
            corrected = better_text(answer)
        self.events.append(
            _with(base, f"{question.question_id}/{kind.value}", seconds, thumb=thumb, rating=rating,
                  corrected=corrected, reasons=reasons)
        )  # fmt: skip
        return Choice.A

    def _side_by_side(self, base: Event, question: Question, pair: AnswerPair, user: Person, rng: Random) -> Choice:
        judges = rng.sample(self.panel, self.judges_per_pair) if self.panel else [user]
        choices = []
        for person in judges:
            left = rng.choice((Side.A, Side.B))
            choice = person.choose(question.text, *pair, left, rng)
            seconds = person.judging_seconds(rng)
            name = f"{question.question_id}/{person.name}"
            gap = person.taste(question.text, pair[0]) - person.taste(question.text, pair[1])
            if gap:
                self.better[name] = "a" if gap > 0 else "b"
            annotator = hash_user(person.name, self.salt) if self.panel else None
            self.events.append(_with(base, name, seconds, annotator_hash=annotator, shown_left=left, choice=choice))
            choices.append(choice)
        return Choice.B if choices.count(Choice.B) > choices.count(Choice.A) else Choice.A

    def _base(
        self, question: Question, pair: AnswerPair, user: Person, when: tuple[str, int, datetime], kind: EventKind
    ) -> Event:
        conversation, turn, moment = when
        both = kind is EventKind.SIDE_BY_SIDE
        return Event(
            event_id="", kind=kind, source="native", source_row=0, prompt=question.turns, response_a=pair[0].text,
            response_b=pair[1].text if both else None, finish_reason_a=_why_ended(pair[0]),
            finish_reason_b=_why_ended(pair[1]) if both else None, conversation_id=conversation, turn=turn,
            user_hash=hash_user(user.name, self.salt), time=moment, model_a=pair[0].model,
            model_b=pair[1].model if both else None, persona=user.persona.name, locale=user.persona.locale,
            surface=user.persona.surface, topic=question.topic, consent=True,
        )  # fmt: skip


def better_text(answer: ShownAnswer) -> str:
    """What a careful person makes of an answer: no filler opening, no rule-breaking advice, two sentences."""
    if answer.correction is not None:
        return answer.correction
    sentences = [s for s in _SENTENCE.split(answer.text) if not s.lower().startswith(_OPENERS)]
    kept = [s.replace("nothing has to be checked", "everything has to be checked") for s in sentences[:2]]
    kept = [s.replace("can be ignored at any time", "must be kept at all times") for s in kept]
    return " ".join(kept) or answer.text


def _why_ended(answer: ShownAnswer) -> FinishReason:
    return FinishReason.STOP if answer.finished else FinishReason.LENGTH


def _with(base: Event, event_id: str, seconds: float, **said: object) -> Event:
    """`base` with who judged it, and what was said; a judgement takes its seconds."""
    time = base.time + timedelta(seconds=seconds) if base.time else None
    return replace(base, event_id=event_id, seconds_taken=seconds, time=time, **said)  # type: ignore[arg-type]
