"""Our own log: every good line becomes the event it says, every bad one is quarantined with line and reason."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from raylign.conf.errors import DataError
from raylign.feedback.events import EVENT_SCHEMA, hash_user
from raylign.feedback.importers import ImportResult, read_log

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SALT = "pepper"


def line(number: int = 1, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "event_id": f"e{number}",
        "kind": "side_by_side",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is tea?"}],
        "response_a": "A drink.",
        "response_b": "Leaves in water.",
        "choice": "a",
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def read(tmp_path: Path, *rows: object, name: str = "log.jsonl") -> ImportResult:
    path = tmp_path / name
    raw = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return read_log([path], user_salt=SALT, now=NOW)


def test_every_field_arrives_as_logged(tmp_path: Path):
    full = line(
        conversation_id="c1",
        turn=2,
        user_id="ann@example.org",
        annotator_id=77,
        time="2026-03-01T12:00:00+02:00",
        seconds_taken=4,
        model_a="m1",
        model_b="m2",
        model_version="v7",
        shown_left="b",
        strength=0.5,
        finish_reason_a="stop",
        finish_reason_b="length",
        reasons=["shorter"],
        comment="ok",
        persona="cook",
        locale="en-GB",
        surface="web",
        topic="tea",
        consent=True,
    )
    result = read(tmp_path, full)

    assert result.quarantined.height == 0 and result.format == "native"
    assert result.events.schema == EVENT_SCHEMA
    expected = dict.fromkeys(EVENT_SCHEMA) | {k: v for k, v in full.items() if k in EVENT_SCHEMA}
    expected |= {
        "source": "native",
        "source_row": 1,
        "user_hash": hash_user("ann@example.org", SALT),
        "annotator_hash": hash_user("77", SALT),
        "time": datetime(2026, 3, 1, 10, tzinfo=UTC),
    }
    assert result.events.row(0, named=True) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (line(choice="left"), "unknown choice 'left'; expected one of a, b, both_good, both_bad, skipped"),
        (line(finish_reason_b="cut"), "unknown finish_reason_b 'cut'; expected one of stop, length"),
        (line(choice=...), "a side-by-side without a choice"),
        (line(response_b=...), "a side-by-side without a second answer"),
        (line(kind="stars"), "unknown kind 'stars'"),
        (line(responce_b="x"), "unknown field `responce_b`; did you mean `response_b`?"),
        (line(response_a=5), "response_a`: expected `str`, got `int`"),
        (line(response_a=" \n"), "`response_a` is empty"),
        (line(event_id=""), "`event_id` is empty"),
        (line(prompt=[]), "the prompt has no turn"),
        (line(prompt="What is tea?"), "prompt`: expected `array`, got `str`"),
        (line(prompt=[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]), "nothing to answer"),
        (line(prompt=[{"role": "bot", "content": "q"}]), "unknown prompt[0].role 'bot'; expected one of system"),
        (line(kind="thumb", thumb=2), "unknown thumb 2; expected one of 1, -1"),
        (line(kind="thumb"), "a thumb without a direction"),
        (line(kind="rating", rating=5), "`rating` is 5.0; expected 0 to 1"),
        (line(kind="correction"), "a correction without a text"),
        (line(strength=0), "`strength` is 0.0; expected above 0"),
        (line(time="2014-12-31T23:59:59Z"), "impossible time 2014-12-31 23:59:59: before 2015"),
        (line(time="2026-06-02T00:00:01Z"), "impossible time 2026-06-02 00:00:01: in the future"),
        (line(time="yesterday"), "time"),
        (line(seconds_taken=-1), "it ends before it starts"),
        (line(turn=2**40), "turn"),
        (line(turn=-1), "turn"),
        (line(user_hash="0" * 16, user_id="u"), "both raw and hashed"),
        (b'{"event_id": "e1", "kind"', "not JSON"),
        (b"[1, 2]", "expected `object`, got `array`"),
        (json.dumps(line(), ensure_ascii=False).encode().replace(b"tea", b"caf\xe9"), "not UTF-8 (byte "),
        (json.dumps(line()).encode().replace(b"tea", b"\\ud83d"), "half a surrogate pair"),
        (b"[" * 100_000, "expected `object`, got `array`"),
        (json.dumps(line()).encode() + json.dumps(line(2)).encode(), "trailing characters"),
    ],
)
def test_a_bad_line_is_put_aside_with_its_reason(tmp_path: Path, row: object, reason: str):
    result = read(tmp_path, line(100), line(101), b"", line(102), row, line(103), line(104))

    assert result.events["event_id"].to_list() == ["e100", "e101", "e102", "e103", "e104"]
    assert result.events["source_row"].to_list() == [1, 2, 4, 6, 7]
    assert result.rows_in == 6
    (bad,) = result.quarantined.to_dicts()
    assert reason in bad["reason"], bad
    assert (bad["file"], bad["line"]) == ("log.jsonl", 5)


def test_times_at_the_edges_are_possible(tmp_path: Path):
    result = read(tmp_path, line(1, time="2015-01-01T00:00:00Z"), line(2, time="2026-06-01T23:59:59Z"))
    assert result.events.height == 2


def test_a_repeated_id_is_put_aside_wherever_it_stands(tmp_path: Path):
    for name, ids in (("a.jsonl", (1, 2, 1)), ("b.jsonl", (3, 2))):
        (tmp_path / name).write_text("".join(json.dumps(line(i, response_a=f"from {name}")) + "\n" for i in ids))
    result = read_log([tmp_path], user_salt=SALT, now=NOW)

    # e2 says something else in b.jsonl, at the same moment: the file named last has the last word.
    assert result.events["event_id"].to_list() == ["e1", "e3", "e2"]
    assert result.events["response_a"].to_list() == ["from a.jsonl", "from b.jsonl", "from b.jsonl"]
    put_aside = result.quarantined.select("file", "line", "reason").rows()
    assert put_aside == [
        ("a.jsonl", 2, "duplicate id `e2`: it is in b.jsonl, line 2 as it was last"),
        ("a.jsonl", 3, "duplicate id `e1`: it was in a.jsonl, line 1, already"),
    ]
    assert result.rows_in == 5 == result.events.height + result.quarantined.height


def test_no_raw_id_comes_out_anywhere(tmp_path: Path):
    rows = [
        line(1, user_id="secret-7"),
        line(2, user_hash="secret-7"),
        line(3, user_id="secret-7", choice="x"),
        line(4, annotator_id="secret-7", user_hash=hash_user("secret-7", SALT)),
        json.dumps({"user_id": "secret-7", **line(5)}).encode()[:-9],
        line(1, user_id="secret-7"),
    ]
    result = read(tmp_path, *rows)

    assert result.events["user_hash"].unique().to_list() == [hash_user("secret-7", SALT)]
    assert result.quarantined["line"].to_list() == [3, 5, 6]
    assert "secret-7" not in result.events.write_json() + result.quarantined.write_json()


def test_byte_order_marks_and_gzip_change_nothing(tmp_path: Path):
    plain = read(tmp_path, line(1), line(2)).events
    marked = b"\xef\xbb\xbf" + json.dumps(line(1)).encode() + b"\r\n\xef\xbb\xbf" + json.dumps(line(2)).encode()
    (tmp_path / "marked.jsonl").write_bytes(marked)
    (tmp_path / "zipped.jsonl.gz").write_bytes(gzip.compress(marked))

    for name in ("marked.jsonl", "zipped.jsonl.gz"):
        assert read_log([tmp_path / name], user_salt=SALT, now=NOW).events.equals(plain)


def test_events_written_as_parquet_come_back_the_same(tmp_path: Path):
    rows = [
        line(1, user_id="u", time="2026-01-01T00:00:00Z"),
        line(2, kind="thumb", thumb=-1, choice=..., reasons=["x"]),
    ]
    first = read(tmp_path, *rows).events
    first.write_parquet(tmp_path / "events.parquet")
    again = read_log([tmp_path / "events.parquet"], user_salt=SALT, now=NOW)

    assert again.events.equals(first) and again.quarantined.height == 0


def test_a_parquet_row_is_checked_like_a_line(tmp_path: Path):
    good = read(tmp_path, line(1), line(2), line(3), line(4)).events
    bad = good.with_columns(choice=pl.when(pl.col("event_id") == "e3").then(pl.lit("c")).otherwise("choice"))
    bad.write_parquet(tmp_path / "events.parquet")
    result = read_log([tmp_path / "events.parquet"], user_salt=SALT, now=NOW)

    assert result.events["event_id"].to_list() == ["e1", "e2", "e4"]
    assert result.quarantined.select("line", "reason").row(0)[0] == 3
    assert "unknown choice 'c'" in result.quarantined["reason"][0]


def test_reading_in_chunks_is_reading_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [line(i % 40, **({"choice": "?"} if i % 7 == 0 else {})) for i in range(100)]
    whole = read(tmp_path, *rows)
    monkeypatch.setattr("raylign.feedback.importers.reading._CHUNK_EVENTS", 3)
    pieces = read(tmp_path, *rows)

    assert pieces.events.equals(whole.events) and pieces.quarantined.equals(whole.quarantined)
    assert pieces.rows_by_judgements == whole.rows_by_judgements == {1: 100}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"  \n\n", "is empty"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b"PAR1 not really", "cannot be read"),
        (b"\x1f\x8b\x08broken", "cannot be read"),
    ],
)
def test_a_file_that_is_nothing_is_refused(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as refused:
        read_log([path], user_salt=SALT)
    assert refused.value.exit_code == 2 and "log.jsonl" in str(refused.value)


def test_all_missing_files_are_named_at_once(tmp_path: Path):
    with pytest.raises(DataError) as refused:
        read_log([tmp_path / "one.jsonl", tmp_path / "two.jsonl"], user_salt=SALT)
    assert len(refused.value.problems) == 2


def test_an_unknown_format_name_suggests_the_nearest(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text(json.dumps(line()))
    with pytest.raises(DataError, match="did you mean langfuse"):
        read_log([tmp_path / "log.jsonl"], format="langfsue", user_salt=SALT)
