"""How a model's votes are mixed with people's: where, how much, and only if it is known to agree with them."""

from __future__ import annotations

import pytest
from raylign.conf.errors import ConfigError
from raylign.feedback.overrides import parse_settings

ALL_TRAIN = ("split.eval=0", "split.test=0")


def vote(make, n: int, judge: str, question: str, choice: str):
    sides = {"response_a": "x", "response_b": "y", "choice": choice, "annotator_id": judge, "user_id": None}
    source = {"source": "ai"} if judge.startswith("ai:") else {}
    return make(n, "side_by_side", question, **sides, **source)


def log(make) -> list:
    """Forty questions that Ann decides, and twenty more; a judge that agrees with her on all but one, and a coin."""
    events = [vote(make, n, "ann", f"people {n}", "a") for n in range(40)]
    events += [vote(make, 100 + n, "ai:good", f"people {n}", "b" if n == 3 else "a") for n in range(40)]
    events += [vote(make, 200 + n, "ai:coin", f"people {n}", "ab"[n % 2]) for n in range(40)]
    events += [vote(make, 300 + n, "ai:good", f"nobody {n}", "a") for n in range(20)]
    events += [vote(make, 400 + n, "ai:unknown", f"only here {n}", "a") for n in range(5)]
    return events


def used(built) -> set[int]:
    """Hundreds of the events that rows name: 0 Ann's, 1 the good judge's, ..."""
    return {int(event[1:]) // 100 for row in built.rows("pairs") for event in row["events"]}


def test_by_default_a_model_is_one_annotator_more(make, run_build):
    built = run_build(log(make), *ALL_TRAIN)
    assert used(built) == {0, 1, 2, 3, 4}
    by_first = {row["events"][0]: row for row in built.rows("pairs")}
    assert by_first["e0"]["weight"] == 1.0 and by_first["e1"]["weight"] == pytest.approx(1 / 3, abs=1e-4)
    assert by_first["e3"]["chosen"][0]["content"] == "y"  # two models outvote her


def test_where_none_leaves_what_people_decided_to_them(make, run_build):
    built = run_build(log(make), *ALL_TRAIN, "trust.ai=where_none")
    assert used(built) == {0, 3, 4}
    assert {rule for event, rule in built.dropped.items() if 100 <= int(event[1:]) < 300} == {"people_decided"}
    (third,) = [row for row in built.rows("pairs") if row["events"] == ["e3"]]
    assert third["chosen"][0]["content"] == "x" and third["weight"] == 1.0


def test_the_order_of_the_answers_does_not_hide_that_people_decided(make, run_build):
    events = log(make)[:40]
    events.append({**vote(make, 101, "ai:good", "people 1", "a"), "response_a": "y", "response_b": "x"})
    assert run_build(events, *ALL_TRAIN, "trust.ai=where_none").dropped == {"e101": "people_decided"}


def test_off_uses_none(make, run_build):
    built = run_build(log(make), *ALL_TRAIN, "trust.ai=off")
    assert used(built) == {0} and set(built.dropped.values()) == {"ai_off"} and len(built.dropped) == 105


def test_a_judge_must_be_known_to_agree_with_people(make, run_build):
    built = run_build(log(make), *ALL_TRAIN, "trust.ai_min_agreement=0.8")
    assert used(built) == {0, 1, 3}
    gone = {event for event, rule in built.dropped.items() if rule == "ai_agrees_too_little"}
    assert {int(event[1:]) // 100 for event in gone} == {2, 4}  # the coin, and one that shares nothing with people
    # 39 of 40: the lower end of the interval is 0.87
    assert used(run_build(log(make), *ALL_TRAIN, "trust.ai_min_agreement=0.88")) == {0}


def test_judges_that_agree_with_each_other_alone_are_not_trusted(make, run_build):
    events = [vote(make, n, "ann", f"people {n}", "a") for n in range(40)]
    events += [vote(make, 100 * k + n, f"ai:{k}", f"people {n}", "b") for k in (1, 2, 3) for n in range(40)]
    assert used(run_build(events, *ALL_TRAIN, "trust.ai_min_agreement=0.5")) == {0}


def test_a_models_choice_counts_less_when_asked(make, run_build):
    built = run_build(log(make), *ALL_TRAIN, "trust.ai_weight=0.25")
    by_first = {row["events"][0]: row for row in built.rows("pairs")}
    assert by_first["e300"]["weight"] == 0.25
    assert by_first["e3"]["chosen"][0]["content"] == "x"  # she outvotes both: 1 against 0.5
    assert by_first["e0"]["weight"] == pytest.approx(1.5 / 3, abs=1e-4)


@pytest.mark.parametrize(
    "setting", ["trust.ai=maybe", "trust.ai_weight=0", "trust.ai_weight=2", "trust.ai_min_agreement=2"]
)
def test_what_cannot_be_is_refused(setting: str):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        parse_settings([setting])
