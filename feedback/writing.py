"""Rows to files: TRL's columns, stable ids, sorted by id, so that equal input gives equal bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
from raylign.data.data_ledger import ledger_of
from raylign.feedback.build_result import SPLITS, Produced
from raylign.feedback.examples import SCHEMAS
from raylign.feedback.teaching import with_context
from raylign.feedback.turns import FIELDS, TOOLS, TURN, message_of, turn, unpack

_TURNS = {"messages", "prompt", "teacher_prompt", "chosen", "rejected", "completion"}
_PART = 20_000  # rows whose texts are in memory once more at a time


def with_ids(kind: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Candidate rows with `id`: a BLAKE2b hash of kind, question, answers and label. Sorted by it."""
    text = pl.concat_str(
        "prompt",
        "answer",
        pl.col("other").fill_null(""),
        pl.col("label").cast(pl.String).fill_null(""),
        separator="\x1d",
    )
    prefix = f"{kind}\x1d".encode()
    ids = [
        hashlib.blake2b(prefix + whole.encode(), digest_size=10).hexdigest()
        for part in rows.iter_slices(_PART)
        for whole in part.select(text).to_series()
    ]
    return rows.with_columns(id=pl.Series(ids, dtype=pl.String)).sort("id")


def training_columns(kind: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as feedback/examples.py declares them for a kind."""
    turns = {name: turn("assistant", pl.col(name)) for name in ("answer", "other")}
    if kind == "sft":
        made = {"messages": unpack(pl.concat_str(pl.col("prompt"), pl.lit(TURN), turns["answer"]))}
    elif kind == "pairs":
        made = {name: unpack(text) for name, text in (("chosen", turns["answer"]), ("rejected", turns["other"]))}
        made["prompt"] = unpack(pl.col("prompt"))
        made |= {"chosen_finished": ~pl.col("answer_cut"), "rejected_finished": ~pl.col("other_cut")}
    elif kind == "teacher":
        made = {"prompt": unpack(pl.col("prompt")), "teacher_prompt": unpack(with_context(pl.col("prompt")))}
    else:
        made = {"prompt": unpack(pl.col("prompt")), "completion": unpack(turns["answer"])}
        made["completion_finished"] = ~pl.col("answer_cut")
    return rows.with_columns(**made).select(pl.col(name).cast(kind_of) for name, kind_of in SCHEMAS[kind].items())


def write_kind(folder: Path, kind: str, rows: pl.DataFrame) -> list[Produced]:
    """The three files of a kind, and what is in them."""
    (folder / kind).mkdir(parents=True)
    produced = []
    for split in SPLITS:
        part = rows.filter(pl.col("split") == split)
        path = folder / kind / f"{split}.jsonl"
        with path.open("wb") as file:
            for rows_of_it in part.iter_slices(_PART):
                made = training_columns(kind, rows_of_it)
                if rows_of_it.select(_holds_calls().any()).item():
                    file.writelines(_line(row) for row in made.iter_rows(named=True))
                else:
                    made.write_ndjson(file)
        digest, size = file_hash(path)
        produced.append(
            Produced(
                kind=kind,
                split=split,
                path=f"{kind}/{split}.jsonl",
                rows=part.height,
                desirable=int(part["label"].sum() or 0),
                weight_sum=round(float(part["weight"].sum()), 6),
                mean_answer_chars=_mean_length(part["answer"]),
                mean_rejected_chars=_mean_length(part["other"]),
                users=part["user_hash"].drop_nulls().n_unique(),
                bytes=size,
                sha256=digest,
                ledger=ledger_of(part.select("events", "user_hash").iter_rows()).id,
            )
        )
    return produced


def _holds_calls() -> pl.Expr:
    """Calls of tools, or tools that were offered: objects of differing keys, which no column has."""
    return pl.any_horizontal(pl.col(name).str.contains(FIELDS) for name in ("prompt", "answer", "other"))


def _line(row: dict[str, Any]) -> bytes:
    """As `write_ndjson` writes it, with what turns have beside their words as fields of theirs, and the tools beside
    the turns."""
    tools = None
    for name in _TURNS & row.keys():
        turns = [message_of(turn["role"], turn["content"]) for turn in row[name]]
        tools = tools or next((turn[TOOLS] for turn in turns if turn["role"] == TOOLS), None)
        row[name] = [turn for turn in turns if turn["role"] != TOOLS]
    whole = row if tools is None else {**row, TOOLS: tools}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def file_hash(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest, path.stat().st_size


def _mean_length(texts: pl.Series) -> float:
    lengths = texts.str.len_chars().drop_nulls()
    return round(int(lengths.sum()) / len(lengths), 2) if len(lengths) else 0.0
