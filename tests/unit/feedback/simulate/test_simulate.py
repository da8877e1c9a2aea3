"""A simulated log holds what was planted, is the same for the same seed, and talks to any answer source."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from raylign.feedback.events import EVENT_SCHEMA, Choice
from raylign.feedback.simulate import (
    Group,
    Habits,
    PlantedModel,
    PlantedQuality,
    Question,
    ShownAnswer,
    SignalMix,
    SimulatedLog,
    Simulation,
    StatedRule,
    TemplateAnswers,
    simulate,
)
from raylign.feedback.simulate.answers import AnswerPair

MODELS = (PlantedModel("strong", 1.0), PlantedModel("weak", -1.0))
EVERYTHING = SignalMix(side_by_side=4, thumb=3, rating=2, correction=1)


def run(settings: Simulation, models: tuple[PlantedModel, ...] = MODELS) -> SimulatedLog:
    return asyncio.run(simulate(settings, TemplateAnswers(models)))


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path: Path):
    paths = [tmp_path / name for name in ("one.jsonl", "two.jsonl", "three.jsonl")]
    for path, seed in zip(paths, (4, 4, 5), strict=True):
        run(Simulation(conversations=40, mix=EVERYTHING, turns=2, repeated_rate=0.1, seed=seed)).write(path)

    one, two, three = (path.read_bytes() for path in paths)

    assert one == two != three


def test_the_file_holds_the_events_and_no_raw_name(tmp_path: Path):
    log = run(Simulation(conversations=60, annotators=(Group("paid", 5),), judges_per_pair=2))
    log.write(tmp_path / "log.jsonl")

    text = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]

    assert [row["event_id"] for row in rows] == [event.event_id for event in log.events]
    assert rows[0].keys() <= set(EVENT_SCHEMA.names())
    assert {row["annotator_hash"] for row in rows} <= log.truth.habits.keys()
    assert len({row["annotator_hash"] for row in rows}) == 5
    assert not any("user-" in json.dumps([row["user_hash"], row["annotator_hash"]]) for row in rows)
    assert log.frame().schema == EVENT_SCHEMA


def test_events_have_ids_of_their_own_and_end_in_the_question():
    log = run(Simulation(conversations=200, mix=EVERYTHING, turns=3, annotators=(Group("x", 4),), judges_per_pair=3))

    assert len({event.event_id for event in log.events}) == len(log.events)
    assert all(event.prompt[-1].role == "user" for event in log.events)
    assert {len(event.prompt) for event in log.events} == {1, 3, 5}
    assert {event.kind.value for event in log.events} == {"side_by_side", "thumb", "rating", "correction"}
    assert all(a.time and b.time and a.time <= b.time for a, b in zip(log.events, log.events[1:], strict=False))


def test_a_careful_person_always_names_the_better_answer_and_flips_come_at_their_rate():
    for rate in (0.0, 0.25):
        log = run(Simulation(conversations=1500, users=(Group("u", 20, Habits(noise=0.0, flip_rate=rate)),)))
        chosen = {e.event_id: e.choice.value for e in log.events if e.choice}
        wrong = sum(chosen[name] != side for name, side in log.truth.better.items()) / len(chosen)

        assert wrong == pytest.approx(rate, abs=0.04)


def test_noise_flips_choices_at_the_bradley_terry_rate():
    users = (Group("u", 20, Habits(noise=2.0)),)
    log = run(Simulation(conversations=4000, users=users), (PlantedModel("x", 1.0), PlantedModel("y", -1.0)))
    won = sum((e.model_a if e.choice is Choice.A else e.model_b) == "x" for e in log.events) / len(log.events)
    expected = 1 / (1 + math.exp(-1.0))

    assert won == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / len(log.events)))


def test_given_questions_are_asked_in_order_by_people_in_turn():
    questions = ("What is tea?", "What is salt?", "What is rain?", "What is ice?")
    log = run(Simulation(conversations=4, users=(Group("u", 2),), questions=questions))
    asked = sorted(log.events, key=lambda event: event.conversation_id or "")

    assert [event.prompt[0].content for event in asked] == list(questions)
    assert [event.user_hash for event in asked] == [asked[0].user_hash, asked[1].user_hash] * 2
    with pytest.raises(ValueError, match="conversations=5, but there are 4 questions"):
        run(Simulation(conversations=5, questions=questions))


def test_lazy_people_take_the_left_and_sides_are_a_fair_coin():
    log = run(Simulation(conversations=600, users=(Group("u", 9, Habits(always_left=True)),)))

    assert all(e.choice and e.shown_left and e.choice.value == e.shown_left.value for e in log.events)
    assert sum(e.shown_left is not None and e.shown_left.value == "a" for e in log.events) == pytest.approx(300, abs=60)


def test_near_answers_are_ties_of_both_kinds_where_people_say_so():
    models = (PlantedModel("a", 0.05), PlantedModel("b", 0.0))
    log = run(Simulation(conversations=200, users=(Group("u", 9, Habits(tie_gap=0.2)),)), models)

    assert {e.choice for e in log.events} == {Choice.BOTH_GOOD, Choice.BOTH_BAD}


def test_repeats_and_copies_are_as_many_as_planted_and_named():
    log = run(Simulation(conversations=1000, repeated_rate=0.1, copied_rate=0.2, users=(Group("u", 50),)))
    frame = log.frame()
    ids = dict(zip(frame["event_id"], frame.drop("event_id", "time", "source_row").rows(), strict=True))
    asked = {e.conversation_id: e.prompt[0].content for e in log.events}

    assert len(log.truth.repeated_events) == pytest.approx(100, abs=35)
    assert all(ids[again] == ids[once] for again, once in log.truth.repeated_events.items())
    assert len(log.truth.copied_questions) == pytest.approx(200, abs=50)
    assert all(asked[copy].endswith(asked[of]) for copy, of in log.truth.copied_questions.items())
    assert {asked[copy] == asked[of] for copy, of in log.truth.copied_questions.items()} == {True, False}


def test_misunderstandings_show_in_later_turns_only():
    log = run(Simulation(conversations=200, turns=2, misunderstood_rate=0.5))

    said = Counter((e.turn, e.prompt[-1].content.startswith("No, I meant")) for e in log.events)

    assert said[0, True] == 0 and said[1, True] == pytest.approx(100, abs=40)


def test_users_have_many_conversations_and_one_persona():
    frame = run(Simulation(conversations=500, users=(Group("u", 25),))).frame()
    people = frame.group_by("user_hash").agg(pl.col("persona").n_unique(), pl.col("conversation_id").n_unique())

    assert people.height == 25 and people["persona"].max() == 1
    assert people["conversation_id"].min() > 5


def test_corrections_drop_the_filler_and_the_falsehood():
    bad = (PlantedModel("x", filler_rate=1.0, wrong_rate=1.0), PlantedModel("y", filler_rate=1.0, wrong_rate=1.0))
    log = run(Simulation(conversations=50, mix=SignalMix(side_by_side=0, correction=1)), bad)

    for event in log.events:
        assert event.corrected and event.corrected != event.response_a
        assert not event.corrected.startswith(("Sure", "Certainly", "As an AI", "Of course"))
        assert "nothing has to be checked" not in event.corrected and "ignored at any time" not in event.corrected


def test_the_stated_rule_prefers_the_plain_short_answer():
    brief = PlantedModel("brief", words=16, filler_rate=0.0)
    wordy = PlantedModel("wordy", words=120, filler_rate=1.0)
    users = (Group("u", 10, Habits(noise=0.0), StatedRule()),)
    frame = run(Simulation(conversations=100, users=users), (brief, wordy)).frame()
    won = pl.when(pl.col("choice") == "a").then("model_a").otherwise("model_b")

    assert set(frame.select(won).to_series()) == {"brief"}


class OneModelTwice:
    """As a served model would answer: nobody knows the quality."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    async def answer(self, questions: Sequence[Question]) -> Sequence[AnswerPair]:
        self.asked += questions
        return [(ShownAnswer("Yes, it does work.", "served"), ShownAnswer("No.", "served")) for _ in questions]


def test_any_source_will_do_and_is_asked_with_the_whole_conversation():
    source = OneModelTwice()
    users = (Group("u", 3, Habits(noise=0.0), StatedRule()),)

    log = asyncio.run(simulate(Simulation(conversations=5, turns=2, users=users), source))

    assert len(log.events) == 10 and {e.model_a for e in log.events} == {"served"}
    assert [len(q.turns) for q in source.asked] == [1] * 5 + [3] * 5
    assert source.asked[-1].turns[1].content == "Yes, it does work."


def test_what_cannot_be_met_is_said():
    with pytest.raises(ValueError, match="judges_per_pair=3, but there are 2"):
        run(Simulation(conversations=1, annotators=(Group("x", 2),), judges_per_pair=3))
    with pytest.raises(ValueError, match="nobody asks"):
        run(Simulation(conversations=1, users=()))
    with pytest.raises(ValueError, match="at least two models"):
        run(Simulation(conversations=1), MODELS[:1])
    with pytest.raises(ValueError, match="plants no quality"):
        asyncio.run(
            simulate(Simulation(conversations=1, users=(Group("u", 1, taste=PlantedQuality()),)), OneModelTwice())
        )
