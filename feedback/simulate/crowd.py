"""A crowd of simulated users and annotators, and what they ask about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from raylign.feedback.simulate.people import Habits, Person, Persona, PlantedQuality, Taste

PERSONAS = (
    Persona("home cook", "en-GB", "mobile", ("cooking", "gardening"), share=3),
    Persona("student", "en-US", "web", ("school", "history"), share=4),
    Persona("engineer", "en-US", "api", ("software", "repairs"), share=2),
    Persona("traveller", "de-DE", "mobile", ("travel", "history"), share=1),
)

_SUBJECTS: Mapping[str, tuple[str, ...]] = {
    "cooking": ("bread dough", "tomato sauce", "rice pudding", "fried eggs", "onion soup", "roast carrots"),
    "gardening": ("rose cutting", "compost heap", "lawn seed", "apple pruning", "slug control", "herb pots"),
    "school": ("long division", "essay outline", "exam revision", "science fair", "reading notes", "group project"),
    "history": ("roman roads", "silk trade", "steam engines", "city walls", "old maps", "royal courts"),
    "software": ("unit tests", "log rotation", "database backup", "release notes", "memory leaks", "code review"),
    "repairs": ("dripping tap", "squeaky door", "flat tyre", "loose socket", "blocked drain", "cracked tile"),
    "travel": ("night trains", "hotel booking", "packing list", "border papers", "city passes", "travel insurance"),
}
_ASKING = (
    "How do I get started with {subject}?",
    "What is the best way to handle {subject}?",
    "Can you explain {subject} in simple words?",
    "What should I watch out for with {subject}?",
    "How long does {subject} usually take?",
    "Is it worth learning {subject}?",
)
_DETAILS = (
    "",
    " I have about {n} minutes.",
    " There are {n} of us.",
    " It is for the {n}th time.",
    " My limit is {n}.",
)


@dataclass(frozen=True, slots=True)
class Group:
    """So many people with the same habits and taste."""

    name: str
    count: int
    habits: Habits = field(default_factory=Habits)
    taste: Taste = field(default_factory=PlantedQuality)


def people(groups: tuple[Group, ...], personas: tuple[Persona, ...], *, seed: int) -> tuple[Person, ...]:
    """Everybody of `groups`, each with a persona drawn by the personas' shares."""
    rng = Random(f"{seed}/people")
    shares = [persona.share for persona in personas]
    return tuple(
        Person(f"{group.name}-{i}", rng.choices(personas, shares)[0], group.taste, group.habits)
        for group in groups
        for i in range(group.count)
    )


def question_of(person: Person, rng: Random) -> tuple[str, str]:
    """A question in the person's line, and its topic."""
    topic = rng.choice(person.persona.topics or tuple(_SUBJECTS))
    subject = rng.choice(_SUBJECTS.get(topic, (topic,)))
    detail = rng.choice(_DETAILS).format(n=rng.randint(2, 90))
    return rng.choice(_ASKING).format(subject=subject) + detail, topic
