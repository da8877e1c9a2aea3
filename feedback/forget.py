"""Forgetting: a tombstone beside the build, then the build again without whatever it names."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raylign.conf.errors import DataError
from raylign.feedback.build import Watch, build
from raylign.feedback.build_result import KINDS, BuildResult, InputFile
from raylign.feedback.clean.personal_data import hide_id
from raylign.feedback.events import hash_user
from raylign.feedback.overrides import parse_settings
from raylign.feedback.source import Source
from raylign.feedback.tombstones import FILE, Tombstones, read_tombstones

_HASH = re.compile(r"[0-9a-f]{16}")


def brought_in(before: BuildResult, after: BuildResult) -> str:
    """What a rebuild took from logs that are not as they were; empty where they are."""
    old, new = ({(file.sha256, file.bytes) for file in result.inputs} for result in (before, after))
    if old == new:
        return ""
    known = {file.name: file for file in before.inputs}
    changed = [file for file in after.inputs if (file.sha256, file.bytes) not in old]
    differences = [_difference(file, known.get(file.name)) for file in changed]
    now = {file.name for file in after.inputs}
    differences += [f"{name} (not there now)" for name in known if name not in now]
    rows = {kind: [sum(made.rows for made in result.produced if made.kind == kind) for result in (before, after)]
            for kind in KINDS}  # fmt: skip
    counts = ", ".join(f"{kind} {first:,} to {second:,} rows" for kind, (first, second) in rows.items())
    return (
        f"The logs are not what this build was made from: {', '.join(differences)}. Judgements {before.rows_in:,} to "
        f"{after.rows_in:,}; {counts}."
    )


def _difference(file: InputFile, before: InputFile | None) -> str:
    return f"{file.name} (new)" if before is None else f"{file.name} ({file.bytes - before.bytes:+,} bytes)"


def named_logs_exist(source: Source) -> None:
    """Raises DataError with every log of a build that is gone."""
    missing = [(path, "--log") for path in source.logs if not path.exists()]
    missing += [(path, "--companion") for path in (source.companion,) if path is not None and not path.exists()]
    if missing:
        raise DataError(
            [f"{path}: is gone, and a rebuild needs it; say where it is now with {option}." for path, option in missing]
        )


def forget(
    folder: Path,
    *,
    users: Sequence[str] = (),
    events: Sequence[str] = (),
    logs: Sequence[Path] = (),
    companion: Path | None = None,
    watch: Watch | None = None,
    with_report: bool = True,
) -> BuildResult:
    """Rebuild `folder` from its logs without these people and events, and without all that were forgotten before.

    A user is given by raw id, which is hashed with the build's salt and kept nowhere, or by hash. The old build stays
    as it was until the new one is complete. `logs` and `companion` say where the files are now, if they have moved.
    Raises DataError when the folder is no build or its logs are gone.
    """
    if not users and not events:
        raise DataError("nothing to forget: give --user or --event.")
    source = Source.read(folder)
    source = replace(source, logs=tuple(logs) or source.logs, companion=companion or source.companion)
    named_logs_exist(source)
    private = parse_settings(source.overrides).privacy
    salt = private.user_salt
    shown = {hide_id(event, salt) for event in events} if private.redact else set(events)
    hashes = {user for user in users if _HASH.fullmatch(user)} | {hash_user(user, salt) for user in users}
    tombstones = read_tombstones(folder / FILE) | Tombstones(frozenset(hashes), frozenset(shown))
    fresh = folder.parent / f".{folder.name}.{os.getpid()}.rebuilt"
    old = folder.parent / f".{folder.name}.{os.getpid()}.old"
    shutil.rmtree(fresh, ignore_errors=True)
    result = build(source, fresh, watch=watch, tombstones=tombstones, with_report=with_report)
    os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old)
    return result
