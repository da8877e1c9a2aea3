"""Rows that a training of a loop is given: what is new, and a draw that stays when the build grows."""

from __future__ import annotations

import json
from pathlib import Path

from raylign.feedback.growth import write_new_rows, write_sample


def rows(folder: Path, ids: range) -> Path:
    """A build's SFT rows, whose texts hold a line break that is no end of a line of JSON."""
    file = folder / "sft" / "train.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": f"row{n}", "text": f"one\u2028two {n}"}, ensure_ascii=False) + "\n" for n in ids]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def ids(file: Path) -> list[str]:
    return [json.loads(line)["id"] for line in file.open(encoding="utf-8")]


def test_new_rows_are_whole_lines(tmp_path: Path):
    rows(tmp_path / "before", range(4))
    rows(tmp_path / "now", range(1, 7))
    grown = write_new_rows(tmp_path / "now", tmp_path / "before", "sft", tmp_path / "new.jsonl")
    assert (grown.new, grown.kept, grown.gone) == (3, 3, 1)
    assert ids(tmp_path / "new.jsonl") == ["row4", "row5", "row6"]


def test_a_draw_stays_when_the_build_grows(tmp_path: Path):
    assert write_sample(rows(tmp_path / "small", range(50)), 10, tmp_path / "first.jsonl") == 10
    assert write_sample(rows(tmp_path / "large", range(200)), 10, tmp_path / "second.jsonl") == 10
    first, second = ids(tmp_path / "first.jsonl"), ids(tmp_path / "second.jsonl")
    left_out = {f"row{n}" for n in range(50)} - set(first)
    assert len(set(first)) == 10 and first == sorted(first, key=lambda name: int(name[3:]))  # in the file's order
    assert not left_out & set(second) and set(second) != set(first)
    assert write_sample(tmp_path / "small" / "sft" / "train.jsonl", 99, tmp_path / "all.jsonl") == 50
