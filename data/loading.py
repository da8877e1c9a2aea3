"""Rows from JSONL, JSON, CSV, parquet, a folder of those, a saved Hugging Face dataset, or a dataset by name.

Nothing is interpreted here: a row is its columns. A line that is no JSON object is a `BadRow` in the stream.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from raylign.conf.errors import DataError
from raylign.data.csv_rows import CSV_SUFFIXES, Broken, Cells, read_csv
from raylign.data.quarantine import BadRow

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", *CSV_SUFFIXES)


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as stored."""

    number: int  # 1-based, over all files in reading order
    source: str  # "train.jsonl:12"
    columns: Mapping[str, object]
    cells: bool = False  # of a CSV file: everything is text (data/csv_rows.py)


def read_rows(name: str) -> Iterator[RawRow | BadRow]:
    """All rows of `data.train` or `data.eval`. Raises DataError when there is nothing to read or it is unreadable."""
    path = Path(name).expanduser()
    if path.is_dir():
        rows = _read_folder(path)
    elif path.is_file():
        rows = _read_file(path)
    elif looks_like_path(name):
        raise DataError(f"data {name}: there is no such file or folder.")
    else:
        rows = _read_hub(name)
    return _numbered(rows)


def looks_like_path(name: str) -> bool:
    """A dataset name is `owner/name` or one bare word; whatever looks like a file or folder is one."""
    return name.startswith(("/", "~", ".")) or name.endswith(SUFFIXES) or name.count("/") > 1 or "\\" in name


def item_text(item: Any) -> str:
    """Everything of a tokenised row as JSON: what `json.dumps(asdict(item))` gives, in a fifth of its time, for
    that copies each token first."""
    return json.dumps(item, default=lambda part: {field.name: getattr(part, field.name) for field in fields(part)})


def content_hash(rows: Iterable[str]) -> str:
    """Hash of a data set's accepted rows in order: the tag a data position is only valid for."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(row.encode("utf-8", "surrogatepass"))
        digest.update(b"\x00")
    return digest.hexdigest()


_Read = tuple[str, object]  # where from, and what: a mapping or Cells when all is well, anything else when not


def _numbered(rows: Iterator[_Read]) -> Iterator[RawRow | BadRow]:
    for number, (source, content) in enumerate(rows, start=1):
        if isinstance(content, Mapping):
            yield RawRow(number, source, content)
        elif isinstance(content, Cells):
            yield RawRow(number, source, content.columns, cells=True)
        elif isinstance(content, Broken):
            yield BadRow(number, source, content.reason, content.text[:500])
        else:
            yield BadRow(number, source, "not a JSON object in UTF-8", str(content)[:500])


def _read_folder(folder: Path) -> Iterator[_Read]:
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _read_saved(folder)
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"data {folder}: the folder holds no {', '.join(SUFFIXES)} file.")
    return (row for file in files for row in _read_file(file))


def _read_file(file: Path) -> Iterator[_Read]:
    if file.suffix == ".parquet":
        return _read_parquet(file)
    if file.suffix == ".json":
        return _read_json(file)
    if file.suffix in CSV_SUFFIXES:
        return read_csv(file)
    if file.suffix in SUFFIXES:
        return _read_jsonl(file)
    raise DataError(f"data {file}: expected a file ending in {', '.join(SUFFIXES)}.")


def _read_jsonl(file: Path) -> Iterator[_Read]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{file.name}:{number}", _parse(line)


def _parse(line: bytes) -> object:
    """The object, or the text itself when it is none."""
    try:
        parsed = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return line.decode("utf-8", "replace").strip()
    return parsed if isinstance(parsed, Mapping) else line.decode("utf-8").strip()


def _read_json(file: Path) -> Iterator[_Read]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"data {file}: not JSON ({error}); one object a line belongs in a .jsonl file.") from error
    if not isinstance(content, list):
        raise DataError(f"data {file}: a .json file must hold a list of rows.")
    return ((f"{file.name}[{i}]", row) for i, row in enumerate(content))


def _read_parquet(file: Path) -> Iterator[_Read]:
    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"data {file}: not a parquet file ({error}).") from error
    with table:
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{file.name}:{number}", {name: _without_nulls(value) for name, value in row.items()}


def _read_saved(folder: Path) -> Iterator[_Read]:
    import datasets  # seconds to import, and most runs read a file

    loaded = datasets.load_from_disk(str(folder))
    return _rows_of(folder.name, loaded)


def _read_hub(name: str) -> Iterator[_Read]:
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"data {name}: no such file or folder here, and as a Hugging Face dataset it could not be loaded "
            f"({reason}); check the name and the network, or give a local file."
        ) from error
    return _rows_of(name, loaded)


def _rows_of(name: str, loaded: object) -> Iterator[_Read]:
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            raise DataError(
                f"data {name}: has no split `train`, only {', '.join(loaded)}; save the one you mean as a file."
            )
        loaded = loaded["train"]
    if not isinstance(loaded, datasets.Dataset):
        raise DataError(f"data {name}: a {type(loaded).__name__} is not a table of rows.")
    return (
        (f"{name}:{i}", {column: _without_nulls(value) for column, value in row.items()})
        for i, row in enumerate(loaded, start=1)
    )


def _without_nulls(value: Any) -> Any:
    """A table gives every object the keys of all rows' objects, null where a row had none: those go."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
