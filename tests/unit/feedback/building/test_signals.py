"""What each signal becomes, and what it never becomes."""

from __future__ import annotations

import pytest

ALL_TRAIN = ("split.eval=0", "split.test=0")


def said(turns: list[dict]) -> list[str]:
    return [turn["content"] for turn in turns]


def test_a_choice_is_a_pair_with_the_strength_as_margin(make, run_build):
    built = run_build(
        [
            make(1, "side_by_side", response_a="good", response_b="bad", choice="a", strength=0.5),
            make(2, "side_by_side", response_a="bad", response_b="good", choice="b"),
        ],
        *ALL_TRAIN,
    )
    rows = {tuple(row["events"]): row for row in built.rows("pairs")}
    assert {key: (said(r["chosen"]), said(r["rejected"]), r["margin"], r["weight"]) for key, r in rows.items()} == {
        ("e1",): (["good"], ["bad"], 0.5, 1.0),
        ("e2",): (["good"], ["bad"], 0.0, 1.0),
    }
    assert rows["e1",]["rules"] == ["choice"]
    assert built.rows("sft") == built.rows("kto") == []


def test_votes_on_the_same_answers_become_one_row_whatever_side_they_stood_on(make, run_build):
    def vote(n: int, first: str, second: str, choice: str, strength: float):
        sides = {"response_a": first, "response_b": second, "choice": choice, "strength": strength}
        return make(n, "side_by_side", "same question", annotator_id=f"judge{n}", user_id=None, **sides)

    built = run_build(
        [vote(1, "x", "y", "a", 1.0), vote(2, "y", "x", "b", 0.5), vote(3, "x", "y", "b", 0.25)], *ALL_TRAIN
    )
    (row,) = built.rows("pairs")
    assert (said(row["chosen"]), said(row["rejected"])) == (["x"], ["y"])
    assert row["weight"] == pytest.approx(1 / 3)  # two against one of three
    assert row["margin"] == 0.75  # of the winners' strengths only
    assert row["events"] == ["e1", "e2", "e3"]
    assert row["rules"] == ["choice", "majority"]


def test_an_even_vote_prefers_nothing(make, run_build):
    sides = {"response_a": "x", "response_b": "y", "user_id": None}
    votes = [make(n, "side_by_side", "q", choice=c, annotator_id=f"j{n}", **sides) for n, c in ((1, "a"), (2, "b"))]
    built = run_build(votes, *ALL_TRAIN)
    assert built.rows("pairs") == []
    assert built.dropped == {"e1": "no_majority", "e2": "no_majority"}


def test_ties_are_kept_apart_unless_asked_for(make, run_build):
    ties = [
        make(1, "side_by_side", response_a="fine one", response_b="fine two", choice="both_good"),
        make(2, "side_by_side", response_a="poor one", response_b="poor two", choice="both_bad"),
        make(3, "side_by_side", response_a="p", response_b="q", choice="skipped"),
    ]
    plain = run_build(ties, *ALL_TRAIN)
    assert plain.rows("pairs") == plain.rows("sft") == plain.rows("kto") == []
    assert plain.dropped == {"e1": "tie_both_good", "e2": "tie_both_bad", "e3": "skipped_choice"}

    asked = run_build(ties, *ALL_TRAIN, "sft.from_both_good=true", "kto.from_both_bad=true")
    assert sorted(said(row["messages"])[-1] for row in asked.rows("sft")) == ["fine one", "fine two"]
    assert sorted((said(row["completion"])[0], row["label"]) for row in asked.rows("kto")) == [
        ("poor one", False),
        ("poor two", False),
    ]
    assert asked.rows("pairs") == []


def test_thumbs_up_are_imitated_and_thumbs_down_never(make, run_build):
    built = run_build([make(1, "thumb", thumb=1), make(2, "thumb", thumb=-1)], *ALL_TRAIN)
    assert [said(row["messages"]) for row in built.rows("sft")] == [["question 1", "answer 1"]]
    assert sorted((said(row["completion"])[0], row["label"]) for row in built.rows("kto")) == [
        ("answer 1", True),
        ("answer 2", False),
    ]
    assert built.rows("pairs") == []


def test_an_answer_disliked_as_often_as_liked_is_nobodys_lesson(make, run_build):
    thumbs = [make(n, "thumb", "q", response_a="debated", thumb=t) for n, t in ((1, 1), (2, -1))]
    built = run_build(thumbs, *ALL_TRAIN)
    assert built.rows("sft") == built.rows("kto") == []
    assert built.dropped == {"e1": "mixed_verdict", "e2": "mixed_verdict"}

    outvoted = run_build([*thumbs, make(3, "thumb", "q", response_a="debated", thumb=-1)], *ALL_TRAIN)
    assert outvoted.rows("sft") == []
    (row,) = outvoted.rows("kto")
    assert (row["label"], row["weight"]) == (False, pytest.approx(1 / 3))


def test_thumbs_make_pairs_only_when_asked_and_then_weigh_little(make, run_build):
    thumbs = [
        make(1, "thumb", "same", response_a="liked", thumb=1),
        make(2, "thumb", "same", response_a="disliked", thumb=-1),
        make(3, "thumb", "other", response_a="alone", thumb=-1),
    ]
    assert run_build(thumbs, *ALL_TRAIN).rows("pairs") == []
    (row,) = run_build(thumbs, *ALL_TRAIN, "pairs.from_thumbs=true", "pairs.thumb_weight_cap=0.2").rows("pairs")
    assert (said(row["chosen"]), said(row["rejected"]), row["weight"]) == (["liked"], ["disliked"], 0.2)
    assert row["rules"] == ["thumb_pair", "weight_capped"]
    assert sorted(row["events"]) == ["e1", "e2"]


def test_a_correction_is_imitated_and_beats_its_original_and_other_disliked_answers(make, run_build):
    built = run_build(
        [
            make(1, "correction", "same", response_a="draft", corrected="the better answer"),
            make(2, "thumb", "same", response_a="disliked", thumb=-1),
        ],
        *ALL_TRAIN,
    )
    assert [said(row["messages"])[-1] for row in built.rows("sft")] == ["the better answer"]
    pairs = {said(row["rejected"])[0]: row for row in built.rows("pairs")}
    assert {said(row["chosen"])[0] for row in pairs.values()} == {"the better answer"}
    assert pairs["draft"]["rules"] == ["correction"]
    assert pairs["disliked"]["rules"] == ["down_vs_correction"]
    assert sorted(pairs["disliked"]["events"]) == ["e1", "e2"]
    assert [said(row["completion"]) for row in built.rows("kto")] == [["disliked"]]


def test_ratings_are_verdicts_at_the_ends_and_pairs_by_their_gap(make, run_build):
    rated = [
        make(n, "rating", "same", response_a=f"rated {r}", rating=r, user_id="one")
        for n, r in ((1, 1.0), (2, 0.9), (3, 0.5), (4, 0.0))
    ]
    built = run_build([*rated, make(5, "rating", rating=0.5)], *ALL_TRAIN)
    assert sorted(said(row["messages"])[-1] for row in built.rows("sft")) == ["rated 0.9", "rated 1.0"]
    pairs = {said(row["rejected"])[0]: (said(row["chosen"])[0], row["margin"]) for row in built.rows("pairs")}
    assert pairs == {"rated 0.5": ("rated 1.0", 0.5), "rated 0.0": ("rated 1.0", 1.0)}  # 0.9 is too near
    assert built.dropped == {"e5": "rating_in_between"}


def test_sources_that_contradict_each_other_at_equal_weight_prefer_nothing(make, run_build):
    choice = make(1, "side_by_side", "q", response_a="x", response_b="y", choice="a", user_id="one")
    edit = make(2, "correction", "q", response_a="x", corrected="y", user_id="one")
    assert run_build([choice, edit], *ALL_TRAIN).rows("pairs") == []
    drops = {(drop.kind, drop.rule): drop.rows for drop in run_build([choice, edit], *ALL_TRAIN).result.row_drops}
    assert drops["pairs", "contradiction"] == 2


def test_without_consent_nothing_is_made_and_nothing_is_shown(make, run_build):
    secret = make(1, "thumb", "a private matter", response_a="a private answer", thumb=1, consent=False)
    built = run_build([secret, make(2, "thumb", thumb=1, consent=True), make(3, "thumb", thumb=1)], *ALL_TRAIN)
    assert built.dropped == {"e1": "no_consent"}
    assert len(built.rows("sft")) == 2
    assert "private" not in built.everything()


def test_rows_say_which_answer_was_cut_whichever_side_it_was(make, run_build):
    def choice(n: int, a: str, b: str, picked: str, **fields: str):
        return make(n, "side_by_side", "q", response_a=a, response_b=b, choice=picked, **fields)

    built = run_build(
        [
            choice(1, "cut short", "whole", "b", finish_reason_a="length", finish_reason_b="stop"),
            choice(2, "first", "cut too", "b", finish_reason_b="length"),
            choice(3, "one", "two", "a"),
            # Elsewhere the words of event 1's cut answer stand on their own: another answer, and a whole one.
            make(4, "side_by_side", "r", response_a="cut short", response_b="other", choice="a"),
            make(5, "thumb", "s", response_a="never ends", thumb=-1, finish_reason_a="length"),
            make(6, "correction", "t", response_a="too lo", corrected="right", finish_reason_a="length"),
        ],
        *ALL_TRAIN,
    )
    pairs = {tuple(row["events"]): (row["chosen_finished"], row["rejected_finished"]) for row in built.rows("pairs")}
    assert pairs == {
        ("e1",): (True, False),
        ("e2",): (False, True),
        ("e3",): (True, True),
        ("e4",): (True, True),
        ("e6",): (True, False),
    }
    assert [row["completion_finished"] for row in built.rows("kto")] == [False]


def test_a_cut_answer_is_not_imitated(make, run_build):
    liked = [
        make(1, "thumb", thumb=1, response_a="whole answer", finish_reason_a="stop"),
        make(2, "thumb", thumb=1, response_a="cut in the mid", finish_reason_a="length"),
    ]
    built = run_build(liked, *ALL_TRAIN)
    assert [row["events"] for row in built.rows("sft")] == [["e1"]]
    (drop,) = built.result.row_drops
    assert (drop.kind, drop.rule, drop.rows) == ("sft", "cut_off", 1)
    assert {tuple(r["events"]): r["completion_finished"] for r in built.rows("kto")} == {("e1",): True, ("e2",): False}


def test_a_cut_answer_is_known_again_without_its_apology(make, run_build):
    turns = [("user", "What is 2?"), ("assistant", "A letter."), ("user", "No, I meant the number two.")]
    accepted = make(
        1, "thumb", turns, thumb=1, response_a="I'm sorry. Two is one and on", finish_reason_a="length"
    )  # fmt: skip
    built = run_build([accepted], *ALL_TRAIN, "pairs.in_conversation=true")
    (row,) = built.rows("pairs")
    assert said(row["chosen"]) == ["Two is one and on"] and not row["chosen_finished"] and row["rejected_finished"]
