"""Which format a file is in, by what its first rows hold; a file nobody knows is refused with a way to read it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice

from raylign.conf.errors import DataError
from raylign.feedback.importers import (
    arena,
    argilla,
    helpsteer,
    hh_rlhf,
    label_studio,
    label_studio_table,
    langfuse,
    langsmith,
    native,
    oasst,
    open_webui,
    openai_log,
    preference_sets,
    prism,
    trainer_rows,
    ultrafeedback,
)
from raylign.feedback.importers.containers import Columns, Container
from raylign.feedback.importers.format import Format
from raylign.feedback.importers.suggest import looks_like

FORMATS: tuple[Format, ...] = (
    native.FORMAT,
    open_webui.FORMAT,
    label_studio.FORMAT,
    label_studio_table.FORMAT,
    argilla.FORMAT,
    langsmith.FORMAT,
    langfuse.FORMAT,
    oasst.FORMAT,
    prism.FORMAT,
    arena.MT_BENCH,
    arena.BATTLES,
    arena.TABLE,
    ultrafeedback.RAW,
    ultrafeedback.BINARIZED,
    preference_sets.SHP,
    preference_sets.ALPACA_FARM,
    preference_sets.WEBGPT,
    preference_sets.SAFE_RLHF,
    preference_sets.SUMMARIES,
    preference_sets.HELPSTEER3_EDIT,
    helpsteer.HELPSTEER3,
    helpsteer.PREFERENCE,
    helpsteer.RATINGS,
    hh_rlhf.FORMAT,
    trainer_rows.TRAINER_PAIRS,
    preference_sets.TRL_PREFERENCE,
    preference_sets.TRL_KTO,
    trainer_rows.TRAINER_LABELS,
    openai_log.FORMAT,
)
"""All formats, those with the most telling columns first."""

_SAMPLE_ROWS = 50


def format_named(name: str) -> Format:
    """Raises DataError with the nearest name."""
    known = {format.name: format for format in FORMATS}
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}, and mapping files."
        raise DataError(f"format={name}: no such format; {hint}")
    return known[name]


def recognise(files: Sequence[Container]) -> Format:
    """The one format all files are in. Raises DataError when they differ, or for the first in none."""
    found = [_recognise(file) for file in files]
    if len({format.name for format in found}) > 1:
        named = "; ".join(f"{file.path} is {format.name}" for file, format in zip(files, found, strict=True))
        raise DataError(f"the files are in several formats ({named}); read them one format at a time.")
    return found[0]


def _recognise(file: Container) -> Format:
    rows = list(islice(file.rows(), _SAMPLE_ROWS))
    readable: list[Columns] = [row.columns for row in rows if row.columns is not None]
    for format in FORMATS:
        # Half of them: the first rows of a real log may well be its broken ones.
        if readable and 2 * sum(format.recognises(columns) for columns in readable) >= len(readable):
            return format
    reasons = [f"line {row.line}: {row.problem}" for row in rows if row.columns is None]
    known = [format.name for format in FORMATS]
    raise DataError(looks_like(file.path, readable, reasons, known))
