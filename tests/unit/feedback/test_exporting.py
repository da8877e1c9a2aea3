"""What is written is read again by the rules of the format it is for; what a format cannot hold is reported."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from raylign.conf.errors import DataError
from raylign.data.loading import RawRow, read_rows
from raylign.data.rows import pair_row
from raylign.data.types import Message
from raylign.feedback.examples import KTO_SCHEMA, PAIR_SCHEMA, SFT_SCHEMA
from raylign.feedback.exporters import ExportResult, write_bedrock, write_openai_preference, write_openai_sft, write_trl

SHORT = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "d": "developer"}
PROVENANCE: dict[str, object] = {"weight": 0.5, "events": ["e1", "e2"], "rules": ["side_by_side"], "split": "train"}


def talk(*turns: str) -> list[dict[str, str]]:
    """`talk("u:What is tea?")`"""
    return [{"role": SHORT[turn[0]], "content": turn[2:]} for turn in turns]


def sft(*conversations: list[dict[str, str]]) -> pl.DataFrame:
    rows = [{**PROVENANCE, "id": f"r{i}", "messages": messages} for i, messages in enumerate(conversations)]
    return pl.DataFrame(rows, schema=SFT_SCHEMA)


def pair(number: int = 0, **changes: object) -> dict[str, object]:
    row = {
        "prompt": talk("u:What is tea?"),
        "chosen": talk("a:A dríńk."),
        "rejected": talk("a:Leaves."),
        "margin": 0.25,
    }
    return {**PROVENANCE, **row, "id": f"p{number}"} | changes


def pairs(*rows: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=PAIR_SCHEMA)


def lines(result: ExportResult) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in result.path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == result.written == result.rows_in - result.rejected.height
    return rows


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_trl_pairs_are_read_by_our_own_loader(tmp_path: Path, suffix: str):
    result = write_trl(pairs(pair(0), pair(1, margin=None, weight=2.0)), tmp_path / f"pairs{suffix}")

    rows = [row for row in read_rows(str(result.path)) if isinstance(row, RawRow)]
    first, second = (pair_row(row.columns) for row in rows)
    assert first.prompt == (Message("user", "What is tea?"),)
    assert (first.chosen, first.rejected) == ((Message("assistant", "A dríńk."),), (Message("assistant", "Leaves."),))
    assert (first.margin, first.weight, second.margin, second.weight) == (0.25, 0.5, 0.0, 2.0)
    assert rows[0].columns["events"] == ["e1", "e2"] and (result.written, result.rejected.height) == (2, 0)


def test_trl_takes_sft_and_kto_rows_and_no_others(tmp_path: Path):
    kto = {**PROVENANCE, "id": "k", "prompt": talk("u:q"), "completion": talk("a:a"), "label": False}
    write_trl(sft(talk("u:q", "a:a")), tmp_path / "sft.jsonl")
    write_trl(pl.DataFrame([kto], schema=KTO_SCHEMA), tmp_path / "kto.jsonl")

    assert json.loads((tmp_path / "sft.jsonl").read_text())["messages"] == talk("u:q", "a:a")
    row = json.loads((tmp_path / "kto.jsonl").read_text())
    assert (row["prompt"], row["completion"], row["label"]) == (talk("u:q"), talk("a:a"), False)
    with pytest.raises(DataError, match="the rows need messages"):
        write_trl(pl.DataFrame({"id": ["x"], "text": ["y"]}), tmp_path / "other.jsonl")
    with pytest.raises(DataError, match=r"neither \.jsonl nor \.parquet"):
        write_trl(sft(talk("u:q", "a:a")), tmp_path / "sft.csv")


def test_openai_sft_trains_the_accepted_answer_only(tmp_path: Path):
    good = talk("s:Be brief.", "u:Hi", "a:Hello.", "u:What is tea?", "a:A drink.")
    bad = [talk("u:q"), talk("u:q", "t:42", "a:a"), talk("u: ", "a:a"), []]
    result = write_openai_sft(sft(good, *bad), tmp_path / "sft.jsonl")

    (row,) = lines(result)
    assert set(row) == {"messages"}
    assert row["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello.", "weight": 0},
        {"role": "user", "content": "What is tea?"},
        {"role": "assistant", "content": "A drink.", "weight": 1},
    ]
    assert result.rejected["id"].to_list() == ["r1", "r2", "r3", "r4"]
    for reason, said in zip(
        result.rejected["reason"], ("does not end", "tool turn", "empty user", "no turns"), strict=True
    ):
        assert said in reason
    assert result.notes == ("OpenAI wants at least 10 rows in a file; this one has 1.",)


def test_openai_preferences(tmp_path: Path):
    good = [pair(i, weight=1.0 + i, rejected_finished=i > 1) for i in range(10)]
    bad = [
        pair(10, chosen=talk("a:x", "a:y")),
        pair(11, rejected=talk("u:x")),
        pair(12, rejected=talk("a:A dríńk.")),
        pair(13, prompt=talk("u:q", "a:a")),
    ]
    result = write_openai_preference(pairs(*good, *bad), tmp_path / "pairs.jsonl")

    rows = lines(result)
    assert len(rows) == 10
    assert rows[0] == {
        "input": {"messages": talk("u:What is tea?"), "tools": [], "parallel_tool_calls": True},
        "preferred_output": talk("a:A dríńk."),
        "non_preferred_output": talk("a:Leaves."),
    }
    assert result.rejected["id"].to_list() == ["p10", "p11", "p12", "p13"]
    assert result.notes == (
        "OpenAI preferences has no place for weight: all rows count the same there.",
        "OpenAI preferences cannot say that an answer was cut off; 2 were, and count as finished there.",
    )


def bedrock_takes(row: dict[str, object]) -> bool:
    """Bedrock's rules, written down apart from the exporter."""
    messages = row["messages"]
    assert isinstance(messages, list)
    roles = [message["role"] for message in messages]
    keys_right = set(row) <= {"system", "messages"} and all(set(message) == {"role", "content"} for message in messages)
    return keys_right and len(roles) >= 2 and len(roles) % 2 == 0 and roles == ["user", "assistant"] * (len(roles) // 2)


def test_bedrock_takes_what_is_written_and_the_rest_is_reported(tmp_path: Path):
    good = [talk("u:q", "a:a"), talk("s:Be brief.", "u:q", "a:a", "u:q2", "a:a2"), talk("d:Be kind.", "u:q", "a:a")]
    bad = [
        talk("a:Hi", "u:q", "a:a"),
        talk("u:q", "u:q2", "a:a"),
        talk("u:q", "a:a", "u:q2"),
        talk("u:q", "s:Be brief.", "u:q2", "a:a"),
        talk("s:Be brief.", "u:q"),
        talk("u:q", "t:42", "a:a"),
        talk("u:q", "a:"),
    ]
    result = write_bedrock(sft(*good, *bad), tmp_path / "bedrock.jsonl")

    rows = lines(result)
    assert [bedrock_takes(row) for row in rows] == [True] * 3
    assert rows[0] == {"messages": talk("u:q", "a:a")}
    assert rows[1] == {"system": "Be brief.", "messages": talk("u:q", "a:a", "u:q2", "a:a2")}
    assert rows[2]["system"] == "Be kind."
    assert result.rejected["id"].to_list() == [f"r{i}" for i in range(3, 10)]
    for reason, said in zip(
        result.rejected["reason"],
        (
            "take turns",
            "take turns",
            "end with the assistant",
            "system turn after",
            "fewer than two",
            "tool turn after",
            "empty",
        ),
        strict=True,
    ):
        assert said in reason


def test_the_same_rows_make_the_same_bytes(tmp_path: Path):
    frame, talks = pairs(*(pair(i) for i in range(20))), sft(*(talk("u:q", f"a:{i}") for i in range(20)))
    for write, rows in (
        (write_trl, frame),
        (write_openai_preference, frame),
        (write_bedrock, talks),
        (write_openai_sft, talks),
    ):
        first, second = write(rows, tmp_path / "first.jsonl"), write(rows, tmp_path / "second.jsonl")
        assert first.path.read_bytes() == second.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.jsonl", "second.jsonl"]
