"""The simulation: people ask, a source answers, people judge; everything is drawn from one seed.

users ask turn t of their conversations -> two answers each -> the user, or a panel of annotators, judges
  -> the conversation goes on with the better answer -> turn t + 1
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random

from raylign.data.types import Message
from raylign.feedback.events import Choice, Event, hash_user
from raylign.feedback.simulate.answers import AnswerPair, AnswerSource, Question
from raylign.feedback.simulate.crowd import PERSONAS, Group, people, question_of
from raylign.feedback.simulate.judge import Judge, SignalMix
from raylign.feedback.simulate.log import SimulatedLog, Truth
from raylign.feedback.simulate.people import Person, Persona


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What to simulate. The same settings give the same log, byte for byte."""

    conversations: int
    users: tuple[Group, ...] = (Group("user", 40),)
    annotators: tuple[Group, ...] = ()  # a panel that judges the side-by-sides; empty: the users do
    personas: tuple[Persona, ...] = PERSONAS
    questions: tuple[str, ...] = ()  # asked one a conversation, users taking turns; empty: what the personas ask about
    mix: SignalMix = field(default_factory=SignalMix)
    judges_per_pair: int = 1  # annotators who judge the same pair
    turns: int = 1  # questions of a conversation
    misunderstood_rate: float = 0.0  # second and later turns that say "No, I meant ..." instead
    copied_rate: float = 0.0  # conversations that open with another user's question, word for word or nearly
    repeated_rate: float = 0.0  # events logged twice under two ids
    start: datetime = datetime(2026, 3, 2, 8, tzinfo=UTC)
    days: int = 28
    salt: str = "simulated"
    seed: int = 0


@dataclass(slots=True)
class _Conversation:
    name: str
    user: Person
    opening: str
    topic: str | None  # None: nobody knows
    begins: datetime
    turns: tuple[Message, ...] = ()


async def simulate(settings: Simulation, source: AnswerSource) -> SimulatedLog:
    """Run it against `source`. Raises ValueError for settings that cannot be met."""
    _check(settings)
    users = people(settings.users, settings.personas, seed=settings.seed)
    panel = people(settings.annotators, settings.personas, seed=settings.seed + 1)
    open_, copied = _open(settings, users)
    judge = Judge(settings.mix, panel, settings.judges_per_pair, settings.salt)
    for turn in range(settings.turns):
        questions = [_ask(settings, conversation, turn) for conversation in open_]
        pairs = await source.answer(questions)
        for conversation, question, pair in zip(open_, questions, pairs, strict=True):
            moment = conversation.begins + timedelta(minutes=4 * turn)
            rng = Random(f"{settings.seed}/judge/{question.question_id}")
            choice = judge.judge(question, pair, conversation.user, (conversation.name, turn, moment), rng)
            conversation.turns = _went_on(question, pair, choice)
    events, repeated = _repeat(settings, judge.events)
    habits = {hash_user(p.name, settings.salt): p.habits for p in (*users, *panel)}
    return SimulatedLog(events, Truth(habits, repeated, copied, judge.better))


def _check(settings: Simulation) -> None:
    num_annotators = sum(group.count for group in settings.annotators)
    if settings.conversations < 1 or settings.turns < 1 or settings.days < 1:
        raise ValueError("conversations, turns and days must be at least 1")
    if not sum(group.count for group in settings.users):
        raise ValueError("users: nobody asks; give at least one Group with a count")
    if settings.questions and len(settings.questions) < settings.conversations:
        raise ValueError(f"conversations={settings.conversations}, but there are {len(settings.questions)} questions")
    if settings.judges_per_pair > max(1, num_annotators):
        raise ValueError(f"judges_per_pair={settings.judges_per_pair}, but there are {num_annotators} annotators")


def _open(settings: Simulation, users: tuple[Person, ...]) -> tuple[list[_Conversation], dict[str, str]]:
    """The conversations with their first questions, spread over the users and the days."""
    rng = Random(f"{settings.seed}/open")
    result: list[_Conversation] = []
    copied: dict[str, str] = {}
    for i in range(settings.conversations):
        name, user, topic = f"conversation-{i}", rng.choice(users), None
        if settings.questions:
            user, text = users[i % len(users)], settings.questions[i]
        else:
            text, topic = question_of(user, rng)
        begins = settings.start + timedelta(seconds=rng.randrange(settings.days * 86_400))
        copies, exactly = rng.random() < settings.copied_rate, rng.random() < 0.5
        if copies and result:
            original = rng.choice(result)
            text, topic = original.opening if exactly else f"Please, {original.opening}", original.topic
            copied[name] = original.name
        result.append(_Conversation(name, user, text, topic, begins))
    return result, copied


def _ask(settings: Simulation, conversation: _Conversation, turn: int) -> Question:
    rng = Random(f"{settings.seed}/ask/{conversation.name}/{turn}")
    text = conversation.opening
    if turn and rng.random() < settings.misunderstood_rate:
        text = f"No, I meant something else: {question_of(conversation.user, rng)[0]}"
    elif turn:
        text = question_of(conversation.user, rng)[0]
    turns = (*conversation.turns, Message("user", text))
    return Question(f"{conversation.name}/{turn}", turns, conversation.topic)


def _went_on(question: Question, pair: AnswerPair, choice: Choice) -> tuple[Message, ...]:
    kept = pair[1] if choice is Choice.B else pair[0]
    return (*question.turns, Message("assistant", kept.text))


def _repeat(settings: Simulation, events: list[Event]) -> tuple[tuple[Event, ...], dict[str, str]]:
    """The events by time, some twice: a client that sent again a second later."""
    rng = Random(f"{settings.seed}/repeat")
    repeated: dict[str, str] = {}
    result = []
    for event in events:
        result.append(event)
        if rng.random() < settings.repeated_rate:
            again = f"{event.event_id}-again"
            repeated[again] = event.event_id
            later = event.time + timedelta(seconds=1) if event.time else None
            result.append(replace(event, event_id=again, time=later))
    ordered = sorted(result, key=lambda event: (event.time or settings.start, event.event_id))
    return tuple(replace(event, source_row=row) for row, event in enumerate(ordered, start=1)), repeated
