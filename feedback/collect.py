"""Asks the policy every prompt twice, in two different moods, and lets a simulated user pick. Pure asyncio."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data.types import Prompt, RolloutGroup, SampleKey, SamplingParams
from feedback.simulated_user import Pick, SimulatedUser
from rollout.interfaces import GenerationRequest

Ask = Callable[[Sequence[GenerationRequest]], Awaitable[Sequence[RolloutGroup]]]
Encode = Callable[[str], Prompt]


@dataclass(frozen=True, slots=True)
class Mood:
    """One way of asking: words added to the question (the user never sees them) and a temperature.

    Two draws of the same kind differ little, and a preference model learns from differences: so a team collects
    answers of several kinds. The words only make answers; they are in no training row.
    """

    hint: str
    temperature: float


PLAIN, PLAIN_COOL = Mood("", 1.0), Mood("", 0.7)
SHORT, SHORT_HOT = Mood(" Answer in one short sentence.", 0.7), Mood(" Answer in one short sentence.", 1.2)
THREE_WORDS = Mood(" Answer in three words.", 0.8)

MOOD_PAIRS = (
    (PLAIN, PLAIN_COOL),
    (PLAIN_COOL, SHORT),
    (PLAIN, SHORT_HOT),
    (SHORT, THREE_WORDS),
    (PLAIN_COOL, PLAIN),
    (SHORT_HOT, PLAIN_COOL),
    (SHORT, SHORT_HOT),
    (THREE_WORDS, PLAIN),
)
"""Taken in turn. Some pairs differ by kind and some only by chance: a reward model that saw no two plain answers side
by side told them apart worse than a coin (docs/log.md)."""


async def collect_picks(
    questions: Sequence[str], ask: Ask, encode: Encode, user: SimulatedUser, *, max_new_tokens: int, seed: int
) -> list[Pick]:
    """One pick a question where there is something to choose; MOOD_PAIRS take turns."""
    requests = []
    for i, question in enumerate(questions):
        for k, mood in enumerate(MOOD_PAIRS[i % len(MOOD_PAIRS)]):
            prompt = encode(question + mood.hint)
            sampling = SamplingParams(mood.temperature, max_new_tokens, seed=seed)
            requests.append(GenerationRequest(prompt, (SampleKey(0, f"{i}", k),), sampling))
    groups = await ask(requests)
    picks = []
    for i, question in enumerate(questions):
        shown = [group.completions[0] for group in groups[2 * i : 2 * i + 2]]
        pick = user.pick(encode(question), shown)
        if pick is not None:
            picks.append(pick)
    return picks


def write_picks(path: Path, picks: Sequence[Pick]) -> None:
    """JSONL with the columns of a preference data set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps(asdict(pick), ensure_ascii=False) for pick in picks)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
