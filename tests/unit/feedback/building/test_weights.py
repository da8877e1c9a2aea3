"""Trust statistics applied when asked: votes by their judge, rows by their group; and noise told with its remedy."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from statistics import fmean

import pytest
from raylign.feedback.build import build
from raylign.feedback.simulate import Group, Habits, PlantedModel, Simulation, TemplateAnswers, simulate
from raylign.feedback.source import Source

ALL_TRAIN = ("split.eval=0", "split.test=0")
BY_JUDGE = (*ALL_TRAIN, "trust.weights=annotator")


def vote(make, n: int, judge: str, question: str, choice: str, **fields: object):
    sides = {"response_a": "x", "response_b": "y", "choice": choice, "annotator_id": judge, "user_id": None}
    return make(n, "side_by_side", question, **(sides | fields))


def shared(make, judges: dict[str, str], count: int) -> list:
    """Pairs all judges saw: each says a, or a and b in turn, or b."""
    said = {
        "sure": lambda q: "a",
        "coin": lambda q: "ab"[q % 2],
        "other coin": lambda q: "aabb"[q % 4],
        "contrary": lambda q: "b",
    }
    pairs = [(q, judge, said[kind](q)) for q in range(count) for judge, kind in judges.items()]
    return [vote(make, n, judge, f"shared question {q}", choice) for n, (q, judge, choice) in enumerate(pairs)]


def test_a_vote_counts_by_how_often_its_judge_agrees_with_others(make, run_build):
    judges = {"ann": "sure", "bob": "sure", "cy": "sure", "dan": "coin"}
    events = shared(make, judges, 120)
    events += [vote(make, 900, "ann", "only ann saw it", "a"), vote(make, 901, "dan", "only dan saw it", "a")]
    events += [vote(make, 902, "eve", "nobody knows eve", "a")]
    plain, weighed = run_build(events, *ALL_TRAIN), run_build(events, *BY_JUDGE)

    alone = {row["events"][0]: row["weight"] for row in plain.rows("pairs") if len(row["events"]) == 1}
    assert alone == {"e900": 1.0, "e901": 1.0, "e902": 1.0}
    rows = {row["events"][0]: row for row in weighed.rows("pairs") if len(row["events"]) == 1}
    # Ann is right in nearly all of her choices; Dan, who tosses a coin, is pulled up to a little by the prior.
    assert rows["e900"]["weight"] > 1.2 and rows["e901"]["weight"] < 0.35 and rows["e902"]["weight"] == 1.0
    assert rows["e900"]["rules"] == ["choice", "judge_weighted"] and rows["e902"]["rules"] == ["choice"]


def test_two_careless_votes_do_not_outvote_a_trusted_one(make, run_build):
    judges = {"ann": "sure", "bob": "sure", "cy": "sure", "dan": "coin", "eli": "other coin"}
    events = shared(make, judges, 200)
    events += [vote(make, 2000 + i, judge, "contested", choice) for i, (judge, choice) in
               enumerate((("ann", "a"), ("dan", "b"), ("eli", "b")))]  # fmt: skip
    chosen = []
    for settings in (ALL_TRAIN, BY_JUDGE):
        (row,) = [r for r in run_build(events, *settings).rows("pairs") if "e2000" in r["events"]]
        chosen.append(row["chosen"][0]["content"])
    assert chosen == ["y", "x"]
    assert row["rules"] == ["choice", "majority", "judge_weighted"]


def test_a_judge_who_knows_nothing_is_dropped_and_counted(make, run_build):
    judges = {"ann": "sure", "bob": "sure", "cy": "sure", "dot": "sure", "zoe": "contrary"}
    events = shared(make, judges, 100)
    built = run_build([*events, vote(make, 5000, "zoe", "only zoe saw it", "a")], *BY_JUDGE)

    assert built.dropped["e5000"] == "untrusted_judge"
    result = built.result
    assert result.rows_in == result.quarantined + result.events_dropped + result.events_used == 501


def test_weights_make_rows_truer_in_a_simulated_log(tmp_path: Path):
    """Planted: six careful judges and three who toss coins, two to a pair."""
    coins = Habits(noise=0.0, flip_rate=0.5)
    panel = (Group("careful", 6, Habits(noise=0.0, flip_rate=0.05)), Group("coin", 3, coins))
    settings = Simulation(conversations=600, users=(Group("u", 60),), annotators=panel, judges_per_pair=2, seed=2)
    models = (PlantedModel("m", 1.0, words=30), PlantedModel("n", -1.0, words=30))
    log = asyncio.run(simulate(settings, TemplateAnswers(models)))
    log.write(tmp_path / "log.jsonl")
    truth = {}
    for event in log.events:
        better = log.truth.better[event.event_id]
        truth[event.event_id] = event.response_a if better == "a" else event.response_b
    right = {}
    for name, more in (("off", ()), ("on", ("trust.weights=annotator",))):
        overrides = ("split.by=prompt", *ALL_TRAIN, "clean.near_duplicates=false", *more)
        build(Source(logs=(tmp_path / "log.jsonl",), overrides=overrides), tmp_path / name, with_report=False)
        rows = [json.loads(line) for line in (tmp_path / name / "pairs" / "train.jsonl").open()]
        wins = [(row["chosen"][0]["content"] == truth[row["events"][0]], row["weight"]) for row in rows]
        right[name] = sum(won * weight for won, weight in wins) / sum(weight for _, weight in wins)
    assert right["on"] > right["off"] + 0.02 and right["on"] > 0.95


def test_balance_weighs_training_rows_by_their_group_and_leaves_held_out_ones(make, run_build):
    people = ["cook"] * 32 + ["pilot"] * 4
    events = [
        make(n, "side_by_side", response_a="good", response_b="bad", choice="a", persona=persona, user_id=f"u{n}")
        for n, persona in enumerate(people)
    ]
    plain = run_build(events, "split.eval=0.3", "split.test=0")
    built = run_build(events, "split.eval=0.3", "split.test=0", "trust.balance=persona", "trust.balance_power=0.5")
    rows = built.rows("pairs", "train")
    counts = {name: sum(row["persona"] == name for row in rows) for name in ("cook", "pilot")}
    whole = sum(n**0.5 for n in counts.values())

    assert min(counts.values()) > 0 and counts["cook"] != counts["pilot"]
    for row in rows:
        n = counts[row["persona"]]
        assert row["weight"] == pytest.approx(n**0.5 / whole * len(rows) / n, abs=1e-5)
        assert row["rules"] == ["choice", "balanced"]
    assert fmean(row["weight"] for row in rows) == pytest.approx(1, abs=1e-4)
    assert built.rows("pairs", "eval") == plain.rows("pairs", "eval") != []


def test_the_card_tells_the_noise_and_the_setting_for_it(make, run_build):
    def judged(wrong: int):
        votes = [
            (q, judge, "b" if q < wrong and judge == "dan" else "a") for q in range(100) for judge in ("ann", "dan")
        ]
        return [vote(make, n, judge, f"question {q}", choice) for n, (q, judge, choice) in enumerate(votes)]

    built = run_build(judged(18), *ALL_TRAIN)
    noise = built.result.noise
    # 18 of 100 pairs differ: 2 e (1 - e) = 0.18, e = 0.1.
    assert noise is not None and noise.rate == pytest.approx(0.1, abs=1e-4) and noise.label_smoothing == 0.1
    assert (noise.method, noise.cases) == ("between", 100) and noise.low < 0.1 < noise.high
    card = (built.folder / "card.md").read_text()
    assert (
        "`algorithm.label_smoothing=0.10`" in card and "`algorithm.loss=robust algorithm.label_smoothing=0.10`" in card
    )
    silent = run_build(judged(0)[::2], *ALL_TRAIN)
    assert silent.result.noise is None and "label_smoothing" not in (silent.folder / "card.md").read_text()
