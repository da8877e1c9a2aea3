"""TRL's columns, which our own trainers read: everything stays, provenance included. JSON lines or parquet."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
from raylign.conf.errors import DataError
from raylign.feedback.exporters.outcome import REJECTED_SCHEMA, ExportResult, require

_KINDS = (("messages",), ("prompt", "chosen", "rejected"), ("prompt", "completion", "label"))


def write_trl(rows: pl.DataFrame, path: Path) -> ExportResult:
    """SFT, preference or KTO rows as they are; `.jsonl` or `.parquet` by the name. Raises DataError for other rows."""
    if not any(set(kind) <= set(rows.columns) for kind in _KINDS):
        kinds = " or ".join(" and ".join(kind) for kind in _KINDS)
        raise DataError(f"export to TRL: the rows need {kinds}; they have {', '.join(rows.columns)}.")
    require(rows, (), "TRL")
    if path.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"export to TRL: {path.name} ends in neither .jsonl nor .parquet.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    if path.suffix == ".parquet":
        rows.write_parquet(part)
    else:
        rows.write_ndjson(part)
    os.replace(part, path)
    return ExportResult(path, rows.height, rows.height, pl.DataFrame(schema=REJECTED_SCHEMA))
