"""The build as a whole: counts that add up, equal bytes, refusals, forgetting, and files the trainers read."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raylign.conf.errors import ConfigError, DataError, UserError
from raylign.data.loading import read_rows
from raylign.data.rows import pair_row, prompt_row
from raylign.feedback.build import build
from raylign.feedback.build_result import KINDS, SPLITS, read_result
from raylign.feedback.events import hash_user
from raylign.feedback.examples import KTO_SCHEMA, PAIR_SCHEMA, SFT_SCHEMA
from raylign.feedback.forget import forget
from raylign.feedback.overrides import parse_settings
from raylign.feedback.settings import BuildSettings
from raylign.feedback.source import Source


def mixed(make, count: int = 120) -> list:
    """Every kind of event, some of them useless, some about the same question."""
    draw = random.Random(5)
    events = []
    for n in range(count):
        kind = draw.choice(["side_by_side", "thumb", "rating", "correction"])
        fields = {"response_a": f"answer {draw.randrange(40)}", "user_id": f"user {draw.randrange(25)}"}
        if kind == "side_by_side":
            choice = draw.choice(["a", "b", "both_good", "skipped"])
            fields |= {"response_b": f"answer {draw.randrange(40)}", "choice": choice}
        elif kind == "thumb":
            fields |= {"thumb": draw.choice([1, -1])}
        elif kind == "rating":
            fields |= {"rating": draw.random()}
        else:
            fields |= {"corrected": f"answer {draw.randrange(40)}"}
        if n % 17 == 0:
            fields["consent"] = False
        events.append(make(n, kind, f"question number {draw.randrange(60)}", conversation_id=f"c{n % 50}", **fields))
    return events


def check_counts(built) -> None:
    """in = out + dropped by reason + quarantined, and every event is in exactly one place."""
    result = built.result
    gone = sum(drop.events for drop in result.event_drops if drop.rule == "forgotten")
    named = {event for kind in KINDS for row in built.rows(kind) for event in row["events"]}
    dropped = built.dropped
    broken = built.lines("quarantine.jsonl")
    assert result.rows_in == len(named) + len(dropped) + len(broken) + gone
    assert not named & dropped.keys()
    assert len(named) == result.events_used and len(broken) == result.quarantined
    by_rule = {drop.rule: drop.events for drop in result.event_drops if drop.rule != "forgotten"}
    assert Counter(dropped.values()) == by_rule
    for before, after in zip(result.waterfall, result.waterfall[1:], strict=False):
        assert after.before == before.after == after.after + after.lost
    assert result.waterfall[-1].after == len(named)
    assert sum(fate.read for fate in result.signals) == result.rows_in - len(broken) - gone


def test_counts_add_up_and_every_event_is_in_one_place(make, run_build):
    built = run_build([*mixed(make), "{not json", '{"event_id": "w"}', json.dumps(make(0, "thumb", thumb=1))])
    check_counts(built)
    assert built.result.quarantined == 3
    assert {"no_consent", "skipped_choice"} <= set(built.dropped.values())


ANY = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=8), st.just([]))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_counts_add_up_whatever_is_broken(data, make, tmp_path_factory, built_type):
    events = mixed(make, 20)
    for _ in range(data.draw(st.integers(0, 12))):
        event = data.draw(st.sampled_from(events))
        event[data.draw(st.sampled_from(sorted({*event, "choice", "thumb", "rating", "corrected"})))] = data.draw(ANY)
    folder = tmp_path_factory.mktemp("fuzz")
    log = folder / "log.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in [*mixed(make, 3), *events]))
    out = folder / "out"
    built = built_type(out, build(Source(logs=(log,)), out, with_report=False))
    check_counts(built)
    assert built.result.rows_in == len(log.read_text().splitlines())


def test_the_same_input_and_settings_give_the_same_bytes(make, run_build):
    events = mixed(make)
    first, second = (run_build(events, "pairs.from_thumbs=true") for _ in range(2))
    names = [sorted(p.relative_to(b.folder) for p in b.folder.rglob("*") if p.is_file()) for b in (first, second)]
    assert names[0] == names[1]
    for name in names[0]:
        if name.name != "source.json":  # names the log's folder
            assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name
    assert first.rows("pairs") and first.rows("sft") and first.rows("kto")


def test_parts_of_a_log_are_no_borders(make, run_build, monkeypatch):
    """Texts are worked on some thousand rows at a time; the bytes do not say how many."""
    talk = [("user", "What is the capital of Australia?"), ("assistant", "Sydney."), ("user", "No, that's wrong.")]
    found = [make(500 + n, "thumb", talk, response_a=f"Canberra, {n}.", thumb=1, user_id=f"v{n}") for n in range(9)]
    edited = [
        make(600, "thumb", "Name a prime.", response_a="Nine is one.", thumb=-1, conversation_id="edited"),
        make(601, "thumb", [("user", "Name a prime."), ("assistant", "Seven is one."), ("user", "Next?")],
             response_a="Eleven.", thumb=1, conversation_id="edited"),
    ]  # fmt: skip
    events = [*mixed(make), *found, *edited]
    whole = run_build(events)
    assert {"in_conversation"} <= {rule for row in whole.rows("sft") for rule in row["rules"]}
    for size in ("build.PART", "corrections._PART", "filtering._PART", "writing._PART"):
        monkeypatch.setattr(f"raylign.feedback.{size}", 7)
    assert run_build(events).everything() == whole.everything()


def test_the_files_are_what_the_trainers_and_the_schemas_say(make, run_build):
    built = run_build(mixed(make))
    for kind in KINDS:
        ids = [row["id"] for row in built.rows(kind, "train")]
        assert ids == sorted(set(ids)) and len(ids) > 5
    for split in SPLITS:
        for row in read_rows(str(built.folder / "pairs" / f"{split}.jsonl")):
            pair = pair_row(row.columns)
            assert pair.weight > 0 and pair.prompt[-1].role == "user" and pair.chosen[0].role == "assistant"
            assert list(row.columns) == PAIR_SCHEMA.names() and row.columns["split"] == split
        for row in read_rows(str(built.folder / "sft" / f"{split}.jsonl")):
            assert prompt_row(row.columns).prompt[-1].role == "user"
            assert row.columns["messages"][-1]["role"] == "assistant"
            assert list(row.columns) == SFT_SCHEMA.names()
        for row in read_rows(str(built.folder / "kto" / f"{split}.jsonl")):
            assert prompt_row(row.columns).prompt[-1].role == "user"
            assert isinstance(row.columns["label"], bool) and row.columns["completion"][0]["role"] == "assistant"
            assert list(row.columns) == KTO_SCHEMA.names()


def test_a_row_keeps_its_id_for_good(make, run_build):
    # Tombstones and notes of other tools name ids: another way to make them would orphan those.
    (row,) = run_build([make(1, "thumb", "What is it?", response_a="It is this.", thumb=1)]).rows("sft")
    assert row["id"] == "a39fab4ec55648702e18"


def test_figures_agree_with_the_files_and_are_read_back(make, run_build):
    built = run_build(mixed(make))
    assert read_result(built.folder) == built.result
    for file in built.result.produced:
        rows = built.rows(file.kind, file.split)
        assert (file.rows, file.weight_sum) == (len(rows), pytest.approx(sum(row["weight"] for row in rows)))
        assert file.users == len({row["user_hash"] for row in rows})
        assert file.desirable == sum(row.get("label") is True for row in rows)
    made = Counter((kind, rule) for kind in KINDS for row in built.rows(kind) for rule in row["rules"])
    assert {(count.kind, count.rule): count.rows for count in built.result.made_by} == made
    card = (built.folder / "card.md").read_text()
    assert all(file.sha256[:16] in card for file in built.result.produced)


def test_no_row_names_a_user_of_another_split(make, run_build):
    built = run_build(mixed(make, 300), "split.eval=0.2", "split.test=0.2")
    users = {split: {row["user_hash"] for kind in KINDS for row in built.rows(kind, split)} for split in SPLITS}
    questions = {
        split: {row["prompt"][-1]["content"] for kind in ("pairs", "kto") for row in built.rows(kind, split)}
        for split in SPLITS
    }
    for kept_apart in (users, questions):
        assert all(kept_apart.values())
        assert sum(map(len, kept_apart.values())) == len(set().union(*kept_apart.values()))


@pytest.mark.slow
def test_the_report_is_written_with_the_build_and_shows_nobody(make, tmp_path: Path):
    log = tmp_path / "log.jsonl"
    secret = make(900, "thumb", "a private matter", response_a="private", thumb=1, consent=False)
    told = make(901, "thumb", "mail a@x.org", response_a="a@x.org", thumb=1, comment="ring +44 20 7946 0958")
    log.write_text("".join(json.dumps(event) + "\n" for event in [*mixed(make), secret, told]))
    for name in ("one", "two"):
        build(Source(logs=(log,)), tmp_path / name)
    page = (tmp_path / "one" / "report.html").read_text()
    assert "x.org" not in page and "private" not in page and "7946" not in page
    assert (tmp_path / "two" / "report.html").read_text() == page


def test_forgetting_a_person_leaves_no_trace_of_them_and_keeps_the_rest(make, tmp_path: Path):
    log = tmp_path / "log.jsonl"
    events = [
        make(1, "thumb", "a question of Ann", response_a="for Ann", thumb=1, user_id="ann", conversation_id="c1"),
        make(2, "thumb", "more of Ann", response_a="for her", thumb=1, user_id=None, conversation_id="c1"),
        make(3, "thumb", "a question of Bob", response_a="for Bob", thumb=1, user_id="bob"),
        make(4, "thumb", "a question of Cem", response_a="for Cem", thumb=1, user_id="cem"),
    ]
    broken = '{"event_id": "e9", "prompt": "broken, of Ann"}'
    log.write_text("".join(json.dumps(event) + "\n" for event in events) + broken + "\n")
    out = tmp_path / "out"
    first = build(Source(logs=(log,), overrides=("split.eval=0", "split.test=0")), out, with_report=False)
    assert first.events_used == 4 and "Ann" in (out / "quarantine.jsonl").read_text()

    after = forget(out, users=["ann"], with_report=False)
    text = "".join(file.read_text() for file in out.rglob("*") if file.is_file())
    assert "Ann" not in text and "for her" not in text and '"e1"' not in text and '"e2"' not in text
    assert '"ann"' not in text and hash_user("ann", BuildSettings().privacy.user_salt) in text  # in forgotten.json
    assert (after.events_used, after.events_dropped, after.rows_in) == (2, 2, 5)

    again = forget(out, events=["e3"], with_report=False)  # and Ann stays forgotten
    assert (again.events_used, again.forgotten) == (1, 2)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_new_build_honours_the_tombstones_of_another(make, run_build):
    events = mixed(make, 30)
    old = run_build(events)
    forget(old.folder, users=["user 3"], with_report=False)
    fresh = run_build(events, f"privacy.forgotten={old.folder / 'forgotten.json'}")
    assert fresh.result.forgotten == 1
    assert hash_user("user 3", "raylign") not in "".join(json.dumps(row) for k in KINDS for row in fresh.rows(k))


def test_forgetting_says_what_is_missing(make, run_build, tmp_path: Path):
    built = run_build(mixed(make, 10))
    with pytest.raises(DataError, match="nothing to forget"):
        forget(built.folder)
    with pytest.raises(DataError, match="not the folder of a build"):
        forget(tmp_path, users=["x"])
    (built.folder / "forgotten.json").write_text('{"users": [1]}')
    with pytest.raises(DataError, match="not a readable list"):
        forget(built.folder, users=["x"])
    (built.folder / "forgotten.json").write_text('{"users": [], "events": []}')
    Source.read(built.folder).logs[0].unlink()
    before = (built.folder / "build.json").read_bytes()
    with pytest.raises(DataError, match="is gone"):
        forget(built.folder, users=["x"])
    assert (built.folder / "build.json").read_bytes() == before


def test_everything_wrong_is_told_at_once_and_nothing_written(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    source = Source(logs=(tmp_path / "gone.jsonl",), overrides=("pairs.from_thumb=true", "split.eval=2"))
    with pytest.raises(UserError) as refused:
        build(source, out)
    told = str(refused.value)
    assert "did you mean pairs.from_thumbs?" in told and "split.eval=2: expected a share" in told
    assert "gone.jsonl: there is no such file" in told and "not empty" in told
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine.txt"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("split.by=usr", "one of user, conversation, prompt"),
        ("clean.rows_per_user=many", "a whole number (default 200)"),
        ("kto.from_thumbs=yes", "true or false"),
        ("ratings.good=0.1", "must be below"),
        ("clean.benchmarks=[/nowhere.txt]", "there is no such file"),
        ("split.eval=nan", "a number"),
        ("just words", "not of the form key=value"),
        ("pairs.thumb_weight_cap=0", "above 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_could(override: str, says: str):
    with pytest.raises(ConfigError) as refused:
        parse_settings([override])
    assert says in str(refused.value)


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_text("neither events nor anything known\n")
    with pytest.raises(UserError):
        build(Source(logs=(log,)), tmp_path / "out", with_report=False)
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_salts_and_paths_are_in_no_shared_file(make, run_build, tmp_path: Path):
    built = run_build(mixed(make, 20), "privacy.user_salt=my-secret-salt", "split.salt=another-secret")
    text = built.everything()
    assert "my-secret-salt" not in text and "another-secret" not in text and str(tmp_path) not in text
    assert (built.folder / "source.json").stat().st_mode & 0o077 == 0


def test_examples_and_pairs_can_be_opened_to_their_whole_conversation(make, run_build):
    turns = [("user", "first question"), ("assistant", "first answer"), ("user", "second question")]
    choice = {"response_b": "another", "choice": "a"}
    built = run_build(
        [make(1, "side_by_side", turns, **choice), make(2, "side_by_side", turns, **(choice | {"choice": "skipped"})),
         make(3, "side_by_side", "short", **choice)]
    )  # fmt: skip
    said = (("user", "first question"), ("assistant", "first answer"), ("user", "second question"))
    (skipped,) = [drop.examples[0] for drop in built.result.event_drops if drop.rule == "skipped_choice"]
    assert skipped.whole == (*said, ("answer", "answer 2"), ("other answer", "another"))
    wholes = {pair.prompt: pair.whole for pair in built.result.pairs_to_look_at}
    assert wholes["second question"] == (*said, ("chosen", "answer 1"), ("rejected", "another"))
    assert wholes["short"] == ()  # all of it is in the excerpts
