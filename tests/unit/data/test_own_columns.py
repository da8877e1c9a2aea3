"""Columns of the user's own names and CSV files: the same rows as from standard names in JSON lines, or a reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from raylign.conf.errors import DataError
from raylign.conf.schema import DataConfig
from raylign.data.csv_rows import Broken, read_csv
from raylign.data.prompts import load_prompts
from raylign.data.row_kinds import load_rows
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import RowKind
from transformers import PreTrainedTokenizerBase

SYMBOLS = 'a "quoted", text;\nof two lines — ü'
STANDARD: dict[RowKind, tuple[dict[str, object], ...]] = {
    RowKind.CONVERSATIONS: (
        {"prompt": SYMBOLS, "completion": "yes", "weight": 0.5},
        {"prompt": "b", "completion": "no", "completion_finished": False},
    ),
    RowKind.DOCUMENTS: ({"text": SYMBOLS}, {"text": "b", "weight": 2.0}),
    RowKind.PAIRS: (
        {"prompt": SYMBOLS, "chosen": "yes", "rejected": "no", "margin": 1.5},
        {"prompt": "b", "chosen": "c", "rejected": "d", "weight": 0.25, "rejected_finished": False},
    ),
    RowKind.JUDGED: (
        {"prompt": SYMBOLS, "completion": "yes", "label": True},
        {"prompt": "b", "completion": "no", "label": False},
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model_dir))


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def table(path: Path, rows: list[dict[str, object]], delimiter: str = ",") -> str:
    """As a spreadsheet writes it: true and numbers as text, nothing for what is not there, a byte order mark."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, sorted({k for row in rows for k in row}), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("kind", STANDARD)
def test_own_names_and_csv_give_the_same_rows_in_every_mode(
    kind: RowKind, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = list(STANDARD[kind])
    wanted = load_rows(kind, jsonl(tmp_path / "a.jsonl", rows), DataConfig(), tokenizer)
    own = {name: f"my {name}" for row in rows for name in row}
    renamed = [{own[name]: value for name, value in row.items()} for row in rows]
    config = DataConfig(columns=own)
    for name in (
        jsonl(tmp_path / "b.jsonl", renamed),
        table(tmp_path / "c.csv", renamed),
        table(tmp_path / "d.csv", renamed, ";"),
        table(tmp_path / "e.tsv", renamed, "\t"),
    ):
        assert load_rows(kind, name, config, tokenizer).digest == wanted.digest, name
    assert load_rows(kind, table(tmp_path / "f.csv", rows), DataConfig(), tokenizer).digest == wanted.digest


def test_conversations_as_json_text_in_a_cell(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    wanted = load_rows(
        RowKind.CONVERSATIONS, jsonl(tmp_path / "a.jsonl", [{"messages": turns}]), DataConfig(), tokenizer
    )
    cells = table(tmp_path / "a.csv", [{"talk": json.dumps(turns)}])
    read = load_rows(RowKind.CONVERSATIONS, cells, DataConfig(columns={"messages": "talk"}), tokenizer)
    assert read.digest == wanted.digest


def test_prompts_keep_the_files_columns_for_reward_functions(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """verl's rows hold the truth inside a column; what the mapping replaces or competes with is not read."""
    row = {"question": "1+1?", "reward_model": {"answer": 2}, "prompt": "old", "messages": [{"role": "x"}], "level": 3}
    name = jsonl(tmp_path / "a.jsonl", [row])
    config = DataConfig(columns={"prompt": "question", "ground_truth": "reward_model.answer"})
    (prompt,) = load_prompts(name, config, tokenizer).prompts
    assert [m.content for m in prompt.messages] == ["1+1?"]
    assert prompt.ground_truth == "2"
    columns = json.loads(prompt.columns)
    assert columns["level"] == 3 and columns["ground_truth"] == 2 and columns["question"] == "1+1?"
    assert "prompt" not in columns and "messages" not in columns


def test_a_column_that_has_a_dot_in_its_name_is_meant_first(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    name = jsonl(tmp_path / "a.jsonl", [{"q.text": "whole", "q": {"text": "inside"}}])
    (prompt,) = load_prompts(name, DataConfig(columns={"prompt": "q.text"}), tokenizer).prompts
    assert prompt.messages[0].content == "whole"


def test_a_column_that_is_nowhere_is_named_with_those_there_are(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    name = jsonl(tmp_path / "a.jsonl", [{"frage": "a", "antwort": "b"}, {"frage": "a", "level": "b"}])
    with pytest.raises(DataError) as told:
        load_prompts(name, DataConfig(columns={"prompt": "frage", "ground_truth": "answer"}), tokenizer)
    assert list(told.value.problems) == [
        f"data.columns={{ground_truth: answer}}: no row of {name} has a column answer; there are frage, antwort, level."
    ]


def test_a_row_without_the_column_says_so(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    name = jsonl(tmp_path / "a.jsonl", [{"frage": "a"}, {"question": "b"}])
    config = DataConfig(columns={"prompt": "frage"}, max_bad_fraction=0.5)
    (example,) = load_prompts(name, config, tokenizer).report.examples
    assert "(data.columns reads `prompt` from `frage`, which is not there)" in example.reason
    assert example.source == "a.jsonl:2"


def test_a_broken_csv_row_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'a,b\n1,"two\nlines"\n1\n1,2,3\n\n"1"x,2\n\xff,2\n3,\n')
    read = list(read_csv(file))
    broken = {where: content.reason for where, content in read if isinstance(content, Broken)}
    assert list(broken) == ["a.csv:4", "a.csv:5", "a.csv:7", "a.csv:8"]
    assert broken["a.csv:5"] == "3 cells where the first line names 2 columns"
    assert broken["a.csv:8"] == "not UTF-8" and "not CSV" in broken["a.csv:7"]
    rows = [content.columns for _, content in read if not isinstance(content, Broken)]
    assert rows == [{"a": "1", "b": "two\nlines"}, {"a": "3", "b": None}]


def test_cells_that_are_no_number_or_flag_are_told(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows: list[dict[str, object]] = [{"prompt": "a", "completion": "b", "label": "perhaps"}]
    with pytest.raises(DataError, match="`label` is 'perhaps'; expected true or false"):
        load_rows(RowKind.JUDGED, table(tmp_path / "a.csv", rows), DataConfig(), tokenizer)
    rows = [{"prompt": "a", "completion": "b", "label": "1", "weight": "much"}]
    with pytest.raises(DataError, match="`weight` is 'much'; expected a finite number"):
        load_rows(RowKind.JUDGED, table(tmp_path / "b.csv", rows), DataConfig(), tokenizer)
