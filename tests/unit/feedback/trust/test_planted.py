"""What is planted in simulated logs is found again: each statistic against a truth it has not seen."""

from __future__ import annotations

import asyncio
import itertools
import math

import numpy as np
import polars as pl
import pytest
from raylign.feedback.events import hash_user
from raylign.feedback.simulate import (
    Group,
    Habits,
    PlantedModel,
    PlantedQuality,
    SimulatedLog,
    Simulation,
    TemplateAnswers,
    simulate,
)
from raylign.feedback.trust import judgements, rater_weights
from raylign.feedback.trust.annotators import Flag, annotators
from raylign.feedback.trust.noise import noise
from raylign.feedback.trust.position import position_bias
from raylign.feedback.trust.ranking import Control, rank_models
from raylign.feedback.trust.summary import measure_trust

MODELS = (
    PlantedModel("amber", strength=0.9),
    PlantedModel("birch", strength=0.3),
    PlantedModel("coral", strength=-0.2),
    PlantedModel("dune", strength=-1.0),
)
CAREFUL = Habits(noise=0.0)


def run(settings: Simulation, models: tuple[PlantedModel, ...] = MODELS) -> SimulatedLog:
    return asyncio.run(simulate(settings, TemplateAnswers(models, seed=settings.seed)))


def panel(*groups: Group, conversations: int, judges: int = 3, seed: int = 0) -> SimulatedLog:
    return run(Simulation(conversations=conversations, annotators=groups, judges_per_pair=judges, seed=seed))


@pytest.mark.parametrize("planted", [0.0, 0.1, 0.2, 0.3])
def test_the_flip_rate_is_recovered_and_becomes_the_smoothing(planted: float):
    # The planted models differ, so a careful judge always names the same one; the rest is flips.
    log = panel(Group("judge", 30, Habits(noise=0.0, flip_rate=planted)), conversations=700)

    found = noise(judgements(log.frame()))

    assert found.estimates[0].rate.holds(planted)
    assert found.estimates[0].rate.high - found.estimates[0].rate.low < 0.1
    assert found.label_smoothing == pytest.approx(planted, abs=0.04)


@pytest.mark.slow
def test_intervals_of_the_flip_rate_hold_the_truth_as_often_as_they_say():
    held = 0
    for seed in range(40):
        log = panel(Group("judge", 20, Habits(noise=0.0, flip_rate=0.15)), conversations=120, seed=seed)
        held += noise(judgements(log.frame())).estimates[0].rate.holds(0.15)

    assert held >= 34  # 38 expected at 95 %; 33 or fewer has a chance below 1 %


@pytest.mark.slow
def test_intervals_of_the_ranking_hold_the_planted_strengths():
    held, intervals = 0, 0
    mean = sum(m.strength for m in MODELS) / len(MODELS)
    for seed in range(40):
        log = run(Simulation(conversations=250, users=(Group("user", 60, Habits(noise=1.0)),), seed=seed))
        ranking = rank_models(judgements(log.frame()))
        assert ranking is not None and ranking.clusters >= 55
        truth = {m.name: m.strength - mean for m in MODELS}
        held += sum(m.strength.holds(truth[m.model]) for m in ranking.models)
        intervals += len(ranking.models)

    assert 0.90 <= held / intervals <= 0.99


def test_the_ranking_equals_the_slow_way():
    log = run(Simulation(conversations=800, seed=5))
    judged = judgements(log.frame())
    ranking = rank_models(judged)
    assert ranking is not None

    # Hunter (2004), minorise-maximise: strength = wins / sum of games / (strength + the other's).
    names = sorted(m.model for m in ranking.models)
    wins = dict.fromkeys(names, 0.0)
    games = dict.fromkeys(itertools.combinations(names, 2), 0)
    for a, b, score in judged.select("model_a", "model_b", "score_a").iter_rows():
        wins[a] += score
        wins[b] += 1 - score
        games[min(a, b), max(a, b)] += 1
    strength = dict.fromkeys(names, 1.0)
    for _ in range(3000):
        met = {n: sum(g / (strength[a] + strength[b]) for (a, b), g in games.items() if n in (a, b)) for n in names}
        strength = {n: wins[n] / met[n] for n in names}
    centre = sum(math.log(s) for s in strength.values()) / len(names)

    for model in ranking.models:
        assert model.strength.value == pytest.approx(math.log(strength[model.model]) - centre, abs=2e-3)


def test_sides_swapped_in_the_log_change_nothing():
    frame = run(Simulation(conversations=300, seed=2)).frame()
    swapped = frame.rename(
        {"response_a": "response_b", "response_b": "response_a", "model_a": "model_b", "model_b": "model_a"}
    ).with_columns(
        pl.col("choice", "shown_left").replace({"a": "b", "b": "a"}),
    )

    before, after = measure_trust(frame), measure_trust(swapped.select(frame.columns))

    assert after.ranking_controlled is not None and before.ranking_controlled is not None
    for old, new in zip(before.ranking_controlled.models, after.ranking_controlled.models, strict=True):
        assert old.model == new.model and new.strength.value == pytest.approx(old.strength.value, abs=1e-9)
    assert after.position == before.position and after.agreement == before.agreement


def test_length_control_undoes_a_planted_length_effect():
    # The wordy model is the weaker one, and people like length: raw, it comes out on top.
    models = (PlantedModel("wordy", -0.4, words=110), PlantedModel("brief", 0.4, words=25), PlantedModel("plain", 0.0))
    users = (Group("user", 80, Habits(noise=1.0), PlantedQuality(length_pull=1.2)),)
    judged = judgements(run(Simulation(conversations=4000, users=users, seed=1), models).frame())

    raw, controlled = rank_models(judged), rank_models(judged, (Control.LENGTH,))

    assert raw is not None and controlled is not None
    assert [m.model for m in raw.models] == ["wordy", "plain", "brief"]
    assert [m.model for m in controlled.models] == ["brief", "plain", "wordy"]
    assert all(m.strength.holds({"wordy": -0.4, "brief": 0.4, "plain": 0.0}[m.model]) for m in controlled.models)
    assert controlled.effects[0].nats.low > 0


def test_without_a_length_effect_the_control_finds_none():
    models = (PlantedModel("wordy", 0.5, words=110), PlantedModel("brief", -0.5, words=25), PlantedModel("plain", 0.0))
    judged = judgements(run(Simulation(conversations=2500, users=(Group("user", 60),), seed=3), models).frame())

    controlled = rank_models(judged, (Control.LENGTH,))

    assert controlled is not None and controlled.effects[0].nats.holds(0.0)
    assert controlled.models[0].model == "wordy"


def test_position_bias_is_found_with_its_size_and_its_people():
    pulled = Group("left", 4, Habits(noise=1.0, left_pull=2.5))
    log = panel(pulled, Group("fair", 16), conversations=1200)
    judged = judgements(log.frame())

    bias, found = position_bias(judged), annotators(log.frame(), judged)

    assert bias.biased and bias.left is not None and bias.left.value > 0.55
    assert not any(p.uneven for p in bias.placements)  # the coin that decides sides is fair
    guilty = {hash_user(f"left-{i}", "simulated") for i in range(4)}
    assert {p.rater for p in found.people if Flag.POSITION in p.flags} == guilty
    ranking = rank_models(judged, (Control.POSITION,))
    assert ranking is not None and ranking.effects[0].nats.low > 0


def test_each_kind_of_bad_annotator_is_flagged_as_that_and_no_honest_one():
    log = panel(
        Group("honest", 24, Habits(noise=0.6, seconds=14.0)),
        Group("lazy", 2, Habits(always_left=True)),
        Group("hasty", 2, Habits(seconds=1.8)),
        Group("contrary", 2, Habits(noise=0.6, flip_rate=0.9)),
        conversations=1500,
    )

    found = annotators(log.frame())

    flags = {p.rater: set(p.flags) for p in found.people}
    name = {hash_user(f"{kind}-{i}", "simulated"): kind for kind in ("lazy", "hasty", "contrary") for i in range(2)}
    for rater, kind in name.items():
        assert {"lazy": Flag.POSITION, "hasty": Flag.FAST, "contrary": Flag.AT_ODDS}[kind] in flags[rater]
    assert {p.rater for p in found.flagged} == name.keys()


@pytest.mark.slow
def test_honest_crowds_are_left_alone_over_many_logs():
    flagged = 0
    for seed in range(30):
        log = panel(Group("honest", 25), conversations=250, judges=4, seed=seed)
        flagged += bool(annotators(log.frame()).flagged)

    assert flagged <= 5  # one log in twenty is allowed one


def test_few_events_flag_nobody():
    log = panel(Group("lazy", 10, Habits(always_left=True, seconds=0.5)), conversations=30)

    found = annotators(log.frame())

    assert found.total == 10 and found.with_enough == 0 and not found.people


def test_thumbs_that_are_always_up_are_flagged_among_mixed_ones_only():
    from raylign.feedback.simulate import SignalMix

    mix = SignalMix(side_by_side=0, thumb=1)
    mixed = (Group("user", 15), Group("fan", 1, Habits(always_up=True)))
    log = run(Simulation(conversations=1200, users=mixed, mix=mix))
    fans = run(Simulation(conversations=1200, users=(Group("fan", 16, Habits(always_up=True)),), mix=mix))

    (person,) = annotators(log.frame()).flagged

    assert person.flags == (Flag.ONE_ANSWER,) and person.answer == "thumbs up"
    assert person.rater == hash_user("fan-0", "simulated")
    assert not annotators(fans.frame()).flagged


def test_weights_follow_how_often_people_are_right():
    log = panel(
        Group("sure", 8, Habits(noise=0.0, flip_rate=0.05)),
        Group("shaky", 8, Habits(noise=0.0, flip_rate=0.3)),
        Group("lazy", 2, Habits(always_left=True)),
        conversations=1500,
        judges=4,
    )

    found = {w.rater: w for w in rater_weights(judgements(log.frame()))}

    def of(kind: str, count: int) -> list[float]:
        return [found[hash_user(f"{kind}-{i}", "simulated")].accuracy for i in range(count)]

    assert np.mean(of("sure", 8)) == pytest.approx(0.95, abs=0.03)
    assert np.mean(of("shaky", 8)) == pytest.approx(0.70, abs=0.03)
    assert max(of("lazy", 2)) < 0.56
    total = sum(w.judgements for w in found.values())
    assert sum(w.weight * w.judgements for w in found.values()) / total == pytest.approx(1)


def test_models_never_compared_with_the_others_are_left_out_by_name():
    log = run(Simulation(conversations=200))
    lonely = {"amber": "amber", "birch": "birch", "coral": "x", "dune": "y"}
    together = pl.col("model_a").is_in(["amber", "birch"]) == pl.col("model_b").is_in(["amber", "birch"])
    frame = log.frame().filter(together).with_columns(pl.col("model_a", "model_b").replace(lonely))

    ranking = rank_models(judgements(frame))

    assert ranking is not None and len(ranking.models) == 2 and len(ranking.left_out) == 2


def test_a_model_that_won_everything_has_a_wide_and_finite_interval():
    models = (PlantedModel("best", 50.0), PlantedModel("rest", 0.0), PlantedModel("other", 0.0))
    ranking = rank_models(judgements(run(Simulation(conversations=60), models).frame()))

    assert ranking is not None and ranking.models[0].model == "best"
    assert math.isfinite(ranking.models[0].strength.high) and ranking.models[0].strength.low > 0


def test_row_order_changes_no_figure():
    frame = panel(Group("judge", 10), conversations=100).frame()

    assert measure_trust(frame.sample(fraction=1.0, shuffle=True, seed=1)) == measure_trust(frame)
