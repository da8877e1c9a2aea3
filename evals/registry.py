"""Which model goes by which name: a small folder of aliases, each with the gate that let it in, and the way back."""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from raylign.conf.errors import UserError
from raylign.records.atomic import write_atomic

LOCK_S = 10.0
"""How long a promotion waits for another one of the same alias."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Release:
    """A model under an alias."""

    model: str  # its folder
    digest: str  # evals.results.model_digest
    when: str  # UTC, ISO 8601
    gate: Mapping[str, object]  # the record of the gate that let it in; empty: promoted without one


@dataclass(frozen=True, slots=True)
class Registry:
    """A folder with one file an alias, its releases from the first to the present one."""

    folder: Path

    def current(self, alias: str) -> Release | None:
        """What the alias points to. Raises UserError when its file is damaged."""
        releases = self._read(alias)
        return releases[-1] if releases else None

    def history(self, alias: str) -> tuple[Release, ...]:
        """Every release, the first one first."""
        return tuple(self._read(alias))

    def promote(self, alias: str, model: Path, digest: str, gate: Mapping[str, object]) -> Release:
        """Let the alias stand for `model`. Raises UserError for a name that is none."""
        release = Release(str(model.absolute()), digest, datetime.now(UTC).isoformat(timespec="seconds"), gate)
        with self._locked(alias):
            self._write(alias, [*self._read(alias), release])
        return release

    def roll_back(self, alias: str) -> Release:
        """Go back to the release before. Raises UserError when there is none, or when its folder has gone."""
        with self._locked(alias):
            releases = self._read(alias)
            if len(releases) < 2:
                raise UserError(f"{alias}: there is no earlier release to go back to.")
            before = releases[-2]
            if not (Path(before.model) / "config.json").is_file():
                raise UserError(f"{alias}: the earlier release {before.model} is not there any more.")
            self._write(alias, releases[:-1])
        return before

    def _path(self, alias: str) -> Path:
        if not _NAME.fullmatch(alias):
            raise UserError(f"{alias!r} is not an alias; use letters, digits, dots, dashes and underscores.")
        return self.folder / f"{alias}.json"

    def _read(self, alias: str) -> list[Release]:
        path = self._path(alias)
        if not path.is_file():
            return []
        try:
            return [Release(**one) for one in json.loads(path.read_text(encoding="utf-8"))["releases"]]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: it is damaged ({error}); put it right or remove it.") from error

    def _write(self, alias: str, releases: list[Release]) -> None:
        content = {"alias": alias, "releases": [asdict(one) for one in releases]}
        write_atomic(self._path(alias), json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @contextmanager
    def _locked(self, alias: str) -> Iterator[None]:
        """Alone among the processes of this machine."""
        path = self._path(alias)
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + LOCK_S
        with path.with_suffix(".lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UserError(f"{alias}: another process has held {file.name} for {LOCK_S:g} s.") from None
                    time.sleep(0.05)
            yield
