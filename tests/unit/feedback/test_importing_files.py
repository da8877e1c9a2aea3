"""Shells, archives, workbooks, folders and standard input: every file is read or named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

import polars as pl
import pyarrow as pa
import pytest
from raylign.conf.errors import DataError
from raylign.feedback.importers import ImportResult, read_log

ROWS = [
    {"event_id": f"e{i}", "kind": "thumb", "prompt": [{"role": "user", "content": f"Question {i}?"}],
     "response_a": f"Answer {i} with \u00fc.", "thumb": 1}
    for i in range(3)
]  # fmt: skip
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return packed.getvalue()


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


def workbook(rows: list[list[object]]) -> bytes:
    """The least that Excel takes for a workbook: strings in place, one sheet, a second one with nothing."""

    def cell(value: object) -> str:
        number = isinstance(value, int | float)
        return f"<c><v>{value}</v></c>" if number else f'<c t="inlineStr"><is><t>{escape(str(value))}</t></is></c>'

    body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="xml" '
        'ContentType="application/xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="" sheetId="1" r:id="r1"/>'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>',
    }  # fmt: skip
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def read(path: Path, **how: object) -> ImportResult:
    return read_log([path], user_salt="salt", **how)  # type: ignore[arg-type]


PACKED = {
    "log.jsonl.gz": gzip.compress(LINES),
    "log.jsonl.zst": zstd(LINES),
    "log.jsonl.bz2": bz2.compress(LINES),
    "log.jsonl.xz": lzma.compress(LINES),
    "log.zip": zipped(log__jsonl=LINES),
    "told by content": lzma.compress(LINES),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_log_is_read_as_what_is_inside(tmp_path: Path, name: str):
    (tmp_path / "plain.jsonl").write_bytes(LINES)
    (tmp_path / name).write_bytes(PACKED[name])
    assert read(tmp_path / name).events.equals(read(tmp_path / "plain.jsonl").events)


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_log_that_is_cut_off_is_refused_in_a_sentence(tmp_path: Path, name: str):
    many = LINES * 2000
    whole = {"gz": gzip.compress, "zst": zstd, "bz2": bz2.compress, "zip": lambda text: zipped(log__jsonl=text)}
    content = whole.get(name.rpartition(".")[2], lzma.compress)(many)
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / name)


def tar(content: bytes, mode: Literal["w", "w:gz"]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        entry = tarfile.TarInfo("log.jsonl")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tar(LINES, "w"), r"is a tar archive; unpack it"),
        (tar(LINES, "w:gz"), r"is a tar archive; unpack it"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(90), "is a 7-Zip archive"),
        (b"Obj\x01" + bytes(90), "is an Avro file; save it as parquet"),
        (pickle.dumps(["a", "b"]), "is a Python pickle, which is never read"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, perhaps of a login"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "is a Git LFS pointer"),
        (b"SQLite format 3\x00" + bytes(90), "is an SQLite database"),
    ],
)
def test_what_is_no_log_is_named_with_what_to_do_about_it(tmp_path: Path, content: bytes, said: str):
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(tmp_path / "log.jsonl")


def test_an_archive_of_several_logs_is_read_and_its_other_files_named(tmp_path: Path):
    halves = [LINES[: LINES.index(b"\n") + 1], LINES[LINES.index(b"\n") + 1 :]]
    (tmp_path / "logs.zip").write_bytes(zipped(a__jsonl=halves[0], b__jsonl=halves[1], notes__md=b"# hello"))
    found = read(tmp_path / "logs.zip")
    assert found.events.height == 3
    assert found.passed_over == ("logs.zip/notes.md (no log by its name)",)


def test_a_workbook_is_read_like_its_csv(tmp_path: Path):
    head = ["Prompt", "Response A", "Response B", "Which is better?", "sure"]
    rows = [["What is tea?", "A drink.", "A city & more.", "Response A", 4], ["", "", "", "", ""],
            ["And coffee?", "A city.", "A drink.", "Response B", 2.5]]  # fmt: skip
    (tmp_path / "form.xlsx").write_bytes(workbook([head, *rows]))
    mapping = tmp_path / "m.yaml"
    mapping.write_text(
        "fields:\n  prompt: Prompt\n  response_a: Response A\n  response_b: Response B\n"
        "  choice: {column: 'Which is better?', values: {Response A: a, Response B: b}}\n"
        "  strength: {column: sure, scale: [0, 5]}"
    )
    found = read(tmp_path / "form.xlsx", mapping=mapping)
    assert found.quarantined.height == 0
    assert found.events.select("response_b", "choice", "strength").rows() == [
        ("A city & more.", "a", 0.8),
        ("A drink.", "b", 0.5),
    ]
    (tmp_path / "broken.xlsx").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(DataError, match=r"is an Excel workbook .* save it as CSV"):
        read(tmp_path / "broken.xlsx")


def test_excels_separator_line_is_passed_over(tmp_path: Path):
    (tmp_path / "a.csv").write_text('sep=;\r\nq;a;up\r\nTea?;"A drink; hot";1\r\n')
    mapping = tmp_path / "m.yaml"
    mapping.write_text("fields: {prompt: q, response_a: a, thumb: up}")
    found = read(tmp_path / "a.csv", mapping=mapping)
    assert found.events.select("response_a", "source_row").rows() == [("A drink; hot", 3)]


def test_every_file_of_a_folder_is_read_or_named(tmp_path: Path):
    folder = tmp_path / "log"
    (folder / "deep").mkdir(parents=True)
    lines = LINES.splitlines(keepends=True)
    (folder / "part1.jsonl").write_bytes(lines[0])
    (folder / "deep" / "part2.jsonl.zst").write_bytes(zstd(lines[1]))
    (folder / "part3.txt").write_bytes(lines[2])
    (folder / "part4.manifest").write_text('{"source": "a", "class": 1}\n')
    (folder / "README").write_text("Nothing to see.\n")
    (folder / "empty.log").write_text("")
    (folder / ".DS_Store").write_bytes(b"\x00\x01")
    found = read(folder)
    assert sorted(found.events["event_id"]) == ["e0", "e1", "e2"]
    assert sorted(found.passed_over) == [
        ".DS_Store (hidden)",
        "README (no rows of JSON)",
        "empty.log (no rows of JSON)",
        "part4.manifest (not native)",
    ]
    assert len(found.files) == 3


def test_a_build_names_what_was_passed_over(tmp_path: Path, built_from):
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "notes.txt").write_text("hello\n")
    result, card = built_from(folder)
    assert any("notes.txt" in warning for warning in result.warnings) and "notes.txt" in card
    assert [file.name for file in result.inputs] == ["a.jsonl"]


@pytest.fixture
def built_from(tmp_path: Path):
    from raylign.feedback.build import build
    from raylign.feedback.source import Source

    def run(log: Path):
        out = tmp_path / "out"
        return build(Source(logs=(log,)), out, with_report=False), (out / "card.md").read_text()

    return run


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from raylign.app.commands.feedback import STDIN, run_build, run_inspect
    from raylign.conf.errors import UserError
    from raylign.feedback.source import Source
    from rich.console import Console

    def typed() -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(zstd(LINES))))

    typed()
    run_inspect(Source(logs=(STDIN,)), Console())
    assert "native: 3 rows, 3 events" in capsys.readouterr().out
    typed()
    result = run_build(Source(logs=(STDIN,)), tmp_path / "out", Console())
    kept = tmp_path / "out.log"
    assert result.rows_in == 3 and kept.read_bytes() == zstd(LINES) and kept.stat().st_mode & 0o077 == 0
    assert str(kept) in json.loads((tmp_path / "out" / "source.json").read_text())["logs"]
    typed()
    with pytest.raises(UserError, match="is there already"):
        run_build(Source(logs=(STDIN,)), tmp_path / "out", Console())


def test_parquet_inside_a_shell(tmp_path: Path):
    table = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(table)
    (tmp_path / "log.parquet.xz").write_bytes(lzma.compress(table.getvalue()))
    assert read(tmp_path / "log.parquet.xz").events.height == 3
