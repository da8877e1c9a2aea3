"""A served model's answers: every mood pair in turn, no mood in the log, and a log whose pairs know what was cut."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from raylign.app.demo import BUILD, NUM_QUESTIONS, demo_questions, picking
from raylign.data.loading import RawRow, read_rows
from raylign.data.rows import pair_row
from raylign.data.types import Completion, FinishReason, Message, Prompt, RolloutGroup, SampleKey, VersionSpan
from raylign.feedback.build import build
from raylign.feedback.events import Choice
from raylign.feedback.simulate import Group, Habits, ServedAnswers, SimulatedLog, Simulation, StatedRule, simulate
from raylign.feedback.simulate.served import MOOD_PAIRS, PLAIN, PLAIN_COOL
from raylign.feedback.source import Source
from raylign.rollout.interfaces import GenerationRequest


class Model:
    """Answers at length, and in a sentence when asked to; long answers are cut."""

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []

    async def __call__(self, requests: Sequence[GenerationRequest]) -> list[RolloutGroup]:
        self.asked += requests
        return [RolloutGroup(r.prompt, r.sampling, (self.answer(r, i),)) for i, r in enumerate(requests)]

    def answer(self, request: GenerationRequest, number: int) -> Completion:
        question, _, _ = request.prompt.text.partition("?")
        text = f"{question} is known to number {number} of us"
        cut = "Answer in" not in request.prompt.text and number % 3 > 0
        text = f"{text}, and then there is more to say " * 3 if cut else f"{text}."
        reason = FinishReason.LENGTH if cut else FinishReason.STOP
        return Completion(SampleKey(0, f"{number}", 0), (1,), (0.0,), reason, (VersionSpan(0, 0, 1),), text)


def encode(turns: tuple[Message, ...]) -> Prompt:
    return Prompt(turns[-1].content, turns, (1,))


def picks(settings: Simulation, model: Model) -> SimulatedLog:
    return asyncio.run(simulate(settings, ServedAnswers("m", model, encode, 64, settings.seed)))


def test_mood_pairs_take_turns_and_their_words_are_in_no_event():
    model = Model()
    log = picks(picking(seed=1), model)
    questions = demo_questions()[:NUM_QUESTIONS]
    asked = [(r.prompt.text, r.sampling.temperature) for r in model.asked]
    moods = [(i, mood) for i in range(NUM_QUESTIONS) for mood in MOOD_PAIRS[i % len(MOOD_PAIRS)]]

    assert asked == [(questions[i] + mood.hint, mood.temperature) for i, mood in moods]
    assert {event.prompt[0].content for event in log.events} == set(questions)
    plain = {f"m, {PLAIN.name}", f"m, {PLAIN_COOL.name}"}
    # A quarter: the two pairs of plain answers, which a reward model must see side by side.
    assert sum({event.model_a, event.model_b} == plain for event in log.events) == NUM_QUESTIONS // 4


def test_each_person_asks_several_questions_and_meets_all_kinds_of_pairs():
    log = picks(picking(seed=3), Model())
    people = Counter(event.user_hash for event in log.events)

    assert len(people) == 35 and set(people.values()) == {NUM_QUESTIONS // 35}


def test_the_demo_log_builds_into_pairs_that_know_what_was_cut(tmp_path: Path):
    log = picks(picking(seed=0), Model())
    log.write(tmp_path / "log.jsonl")
    result = build(Source(logs=(tmp_path / "log.jsonl",), overrides=BUILD), tmp_path / "built", with_report=False)
    made = {file.split: file.rows for file in result.produced if file.kind == "pairs"}

    decided = [event for event in log.events if event.choice in (Choice.A, Choice.B)]
    assert sum(made.values()) == len(decided) and made["test"] == 0
    assert 0.15 < made["eval"] / len(decided) < 0.25
    cut = {(event.prompt[0].content, text) for event in log.events for text, reason in (
        (event.response_a, event.finish_reason_a), (event.response_b, event.finish_reason_b)
    ) if reason is FinishReason.LENGTH}  # fmt: skip
    seen = Counter()
    for row in read_rows(str(tmp_path / "built" / "pairs" / "train.jsonl")):
        assert isinstance(row, RawRow)
        pair = pair_row(row.columns)
        for side, finished in ((pair.chosen, pair.chosen_finished), (pair.rejected, pair.rejected_finished)):
            assert finished == ((pair.prompt[0].content, side[0].content) not in cut)
            seen[finished] += 1
    assert seen[True] > 20 and seen[False] > 20


def test_answers_of_equal_worth_are_no_pick():
    class Echo(Model):
        def answer(self, request: GenerationRequest, number: int) -> Completion:
            return Completion(
                SampleKey(0, "x", 0), (1,), (0.0,), FinishReason.STOP, (VersionSpan(0, 0, 1),), f"It is so{number % 2}."
            )

    users = (Group("u", 2, Habits(noise=0.33, tie_gap=1e-9), StatedRule()),)
    log = picks(Simulation(conversations=8, users=users, questions=tuple("abcdefgh")), Echo())

    assert {event.choice for event in log.events} <= {Choice.BOTH_GOOD, Choice.BOTH_BAD}


def test_the_log_is_written_with_its_reasons(tmp_path: Path):
    log = picks(picking(seed=0), Model())
    log.write(tmp_path / "log.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]

    assert {row["finish_reason_a"] for row in rows} == {"stop", "length"}
