"""Forgetting: a tombstone beside the build, then the build again without whatever it names."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from raylign.conf.errors import DataError
from raylign.feedback.build import Watch, build
from raylign.feedback.build_result import BuildResult
from raylign.feedback.clean.personal_data import hide_id
from raylign.feedback.events import hash_user
from raylign.feedback.overrides import parse_settings
from raylign.feedback.source import Source
from raylign.feedback.tombstones import FILE, Tombstones, read_tombstones

_HASH = re.compile(r"[0-9a-f]{16}")


def forget(
    folder: Path,
    *,
    users: Sequence[str] = (),
    events: Sequence[str] = (),
    watch: Watch | None = None,
    with_report: bool = True,
) -> BuildResult:
    """Rebuild `folder` from its logs without these people and events, and without all that were forgotten before.

    A user is given by raw id, which is hashed with the build's salt and kept nowhere, or by hash. The old build stays
    as it was until the new one is complete. Raises DataError when the folder is no build or its logs are gone.
    """
    if not users and not events:
        raise DataError("nothing to forget: give --user or --event.")
    source = Source.read(folder)
    missing = [path for path in source.logs if not path.exists()]
    if missing:
        raise DataError([f"{path}: the log this build was made from is gone; a rebuild needs it." for path in missing])
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
