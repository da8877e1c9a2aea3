"""Growing a log moves no row between train, eval and test, whatever the new events are."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.feedback.build_result import SPLITS
from raylign.feedback.cleaning import place_events
from raylign.feedback.events import EVENT_SCHEMA
from raylign.feedback.ledger import Ledger
from raylign.feedback.settings import BuildSettings, SplitBy, SplitSettings
from raylign.feedback.splits import draw
from raylign.feedback.working import working_frame

# Few users, conversations and words, and large held-out shares, so that everything collides.
SETTINGS = BuildSettings(split=SplitSettings(eval=0.3, test=0.3))
WORDS = ("what", "is", "the", "capital", "of", "france", "spain", "really", "please")


@st.composite
def logs(draw_from):
    events = draw_from(
        st.lists(
            st.tuples(
                st.one_of(st.none(), st.sampled_from("abcdef")),
                st.one_of(st.none(), st.sampled_from("klmn")),
                st.lists(st.sampled_from(WORDS), min_size=1, max_size=10),
            ),
            min_size=1,
            max_size=40,
        )
    )
    return [(f"e{i}", i, *event) for i, event in enumerate(events)]


def placed(events, choose: BuildSettings = SETTINGS) -> pl.DataFrame:
    rows = [
        {
            "event_id": name,
            "kind": "thumb",
            "prompt": [{"role": "user", "content": " ".join(words)}],
            "response_a": "answer",
            "thumb": 1,
            "user_hash": user,
            "conversation_id": conversation,
            "time": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute),
            "source": "native",
            "source_row": 1,
        }
        for name, minute, user, conversation, words in events
    ]
    full = [{column: row.get(column) for column in EVENT_SCHEMA} for row in rows]
    work = working_frame(pl.DataFrame(full, schema=EVENT_SCHEMA)).with_row_index("row_order")
    return place_events(work, choose, Ledger())


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(logs(), st.integers(1, 40))
def test_later_events_move_no_question_and_no_event(log, cut: int):
    before, after = placed(log[:cut]), placed(log)

    for key in ("event_id", "prompt"):
        old = dict(before.select(key, "split").iter_rows())
        new = dict(after.select(key, "split").iter_rows())
        assert all(new[name] == split for name, split in old.items() if name in new)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(logs(), st.sets(st.integers(0, 39)))
def test_events_keep_their_split_in_any_part_of_the_log(log, chosen: set[int]):
    part = [event for i, event in enumerate(log) if i in chosen] or log[:1]
    whole = dict(placed(log).select("event_id", "split").iter_rows())

    assert all(whole.get(name, split) == split for name, split in placed(part).select("event_id", "split").iter_rows())


@settings(max_examples=60, deadline=None)
@given(logs())
def test_users_questions_and_near_equal_questions_stay_together(log):
    work = placed(log)
    for key in ("user_hash", "prompt", "cluster"):
        seen = defaultdict(set)
        for value, split in work.select(key, "split").drop_nulls().iter_rows():
            seen[value].add(split)
        assert all(len(splits) == 1 for splits in seen.values()), key


def test_a_bridge_between_two_groups_drops_the_later_and_moves_none():
    def asked(number: int, user: str, text: str):
        return (f"e{number}", number, user, None, text.split())

    by_split = defaultdict(list)
    for i in range(60):
        by_split[draw(f"user:u{i}", SETTINGS.split)].append(f"u{i}")
    train, held = by_split["train"][0], by_split["eval"][0]
    words = " ".join(f"w{i}" for i in range(17))
    # Neither end is near the other; the middle is near both.
    left, right = f"a b {words}", f"{words} c d"
    ends = [asked(1, train, left), asked(2, held, right)]
    apart = placed(ends)
    assert dict(apart.select("event_id", "split").iter_rows()) == {"e1": "train", "e2": "eval"}

    joined = placed([*ends, asked(3, train, words)])
    assert joined["cluster"].n_unique() == 1
    assert dict(joined.select("event_id", "split").iter_rows()) == {"e1": "train", "e3": "train"}

    # The question that was held out does not turn up in train now, whoever asks it.
    asked_again = placed([*ends, asked(3, train, words), asked(4, train, right)])
    assert dict(asked_again.select("event_id", "split").iter_rows()) == {"e1": "train", "e3": "train"}


def test_all_depths_of_a_conversation_without_ids_share_a_split(make, run_build):
    """Rows as HH-RLHF has them: each prompt is the last one with its chosen answer and the next question."""
    rows, topic = [], ("pump", "oven", "lamp", "desk", "door", "roof", "sink", "tile", "vent", "wall")
    for talk in range(60):
        turns: list[tuple[str, str]] = []
        for depth in range(4):
            turns.append(
                ("user", f"How do I mend the {topic[talk % 10]} number {talk * talk}, step {depth} of my list?")
            )
            good, bad = f"Hold the {talk}-{depth} button and wait.", f"No idea about {talk}-{depth}."
            fields = {"response_a": good, "response_b": bad, "choice": "a", "user_id": None}
            rows.append(make(len(rows), "side_by_side", list(turns), **fields))
            turns.append(("assistant", good))
    built = run_build(rows, "split.eval=0.2", "split.test=0.2", "clean.near_duplicates=false")
    splits = defaultdict(set)
    for split in SPLITS:
        for row in built.rows("pairs", split):
            splits[row["prompt"][0]["content"]].add(split)
    assert len(splits) == 60 and {len(found) for found in splits.values()} == {1}
    assert len(set.union(*splits.values())) == 3


def _word_pairs(text: str) -> set[tuple[str, str]]:
    words = ["^", *re.sub(r"[\W_]+", " ", text.lower()).split(), "$"]
    return set(pairwise(words))


def test_no_held_out_question_is_near_one_trained_by_an_all_pairs_check(make, run_build):
    """Word problems and their retellings with other figures, by many people; compared pair by pair, not by MinHash."""
    draw_from = random.Random(7)
    words = [f"word{i}" for i in range(400)]
    rows = []
    for story in range(150):
        told = draw_from.choices(words, k=40)
        for variant in range(3):
            changed = [w if draw_from.random() > 0.08 * variant else draw_from.choice(words) for w in told]
            text, number = " ".join(changed), len(rows)
            answer = f"Step by step, story {story}: {draw_from.random()} is the total."
            rows.append(make(number, "thumb", text, response_a=answer, thumb=1, user_id=f"u{number}"))
    built = run_build(rows, "split.eval=0.2", "split.test=0.2")
    asked = {s: [_word_pairs(row["messages"][0]["content"]) for row in built.rows("sft", s)] for s in SPLITS}
    assert min(len(found) for found in asked.values()) > 20
    near = [
        len(a & b) / len(a | b)
        for one, other in (("train", "eval"), ("train", "test"), ("eval", "test"))
        for a in asked[one]
        for b in asked[other]
    ]
    assert max(near) < 0.6


def test_shares_are_as_asked_and_another_salt_draws_otherwise():
    chosen = SplitSettings(eval=0.1, test=0.2)
    drawn = [draw(f"user:{i}", chosen) for i in range(20_000)]
    shares = {split: count / 20_000 for split, count in Counter(drawn).items()}
    assert {split: round(shares[split], 2) for split in SPLITS} == {"train": 0.7, "eval": 0.1, "test": 0.2}

    other = [draw(f"user:{i}", SplitSettings(eval=0.1, test=0.2, salt="other")) for i in range(20_000)]
    agree = sum(a == b for a, b in zip(drawn, other, strict=True)) / 20_000
    assert round(agree, 1) == 0.5  # 0.7^2 + 0.1^2 + 0.2^2 = 0.54: as by chance


def test_a_key_keeps_its_split_for_good():
    # These were drawn once; another result would move every row of every data set built so far.
    drawn = [draw(f"user:{i}", SplitSettings()) for i in range(40)]
    assert {split: [i for i, s in enumerate(drawn) if s == split] for split in ("eval", "test")} == FIXED


def test_split_by_prompt_keeps_questions_that_everybody_answers():
    log = [(f"e{i}", i, f"user{i}", None, ["same", "question", str(i % 5)]) for i in range(100)]
    chosen = BuildSettings(split=SplitSettings(by=SplitBy.PROMPT, eval=0.3, test=0.3))
    by_user, by_prompt = placed(log), placed(log, chosen)
    assert by_prompt.height == 100 > by_user.height


FIXED: dict[str, list[int]] = {"eval": [34, 38], "test": []}
