"""Answers of a served model, each question asked in two different moods. Pure asyncio over a rollout worker's types."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from raylign.data.types import Completion, FinishReason, Message, Prompt, RolloutGroup, SampleKey, SamplingParams
from raylign.feedback.simulate.answers import AnswerPair, Question, ShownAnswer
from raylign.rollout.interfaces import GenerationRequest

Ask = Callable[[Sequence[GenerationRequest]], Awaitable[Sequence[RolloutGroup]]]
Encode = Callable[[tuple[Message, ...]], Prompt]


@dataclass(frozen=True, slots=True)
class Mood:
    """One way of asking: words added to the question (the user never sees them) and a temperature.

    Two draws of the same kind differ little, and a preference model learns from differences: so a team collects
    answers of several kinds. The words only make answers; they are in no event.
    """

    name: str
    hint: str
    temperature: float


PLAIN, PLAIN_COOL = Mood("plain", "", 1.0), Mood("plain, cool", "", 0.7)
SHORT = Mood("short", " Answer in one short sentence.", 0.7)
SHORT_HOT = Mood("short, hot", " Answer in one short sentence.", 1.2)
THREE_WORDS = Mood("three words", " Answer in three words.", 0.8)

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


@dataclass(frozen=True, slots=True)
class ServedAnswers:
    """An AnswerSource: the model behind `ask`, question i of a call in the two moods of `MOOD_PAIRS[i % 8]`."""

    model: str
    ask: Ask
    encode: Encode
    max_new_tokens: int
    seed: int

    async def answer(self, questions: Sequence[Question]) -> Sequence[AnswerPair]:
        """One pair a question; raises what `ask` raises."""
        requests = [
            self._request(question, i, k, mood)
            for i, question in enumerate(questions)
            for k, mood in enumerate(MOOD_PAIRS[i % len(MOOD_PAIRS)])
        ]
        completions = [group.completions[0] for group in await self.ask(requests)]
        pairs = []
        for i in range(len(questions)):
            first, second = MOOD_PAIRS[i % len(MOOD_PAIRS)]
            pairs.append((self._shown(completions[2 * i], first), self._shown(completions[2 * i + 1], second)))
        return pairs

    def _request(self, question: Question, i: int, k: int, mood: Mood) -> GenerationRequest:
        last = question.turns[-1]
        prompt = self.encode((*question.turns[:-1], replace(last, content=last.content + mood.hint)))
        sampling = SamplingParams(mood.temperature, self.max_new_tokens, seed=self.seed)
        return GenerationRequest(prompt, (SampleKey(0, f"{i}", k),), sampling)

    def _shown(self, completion: Completion, mood: Mood) -> ShownAnswer:
        finished = completion.finish_reason is FinishReason.STOP
        return ShownAnswer(completion.text, f"{self.model}, {mood.name}", finished=finished)
