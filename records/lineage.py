"""Which runs were trained on somebody's judgements, by their own rows or by a model they began with or learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.data.data_ledger import DataLedger, read_ledger
from raylign.records.manifest import read_manifest
from raylign.records.run_folder import RunPaths


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run, as its folder says it."""

    folder: Path
    scores: bool  # its export is a reward model
    ledger: DataLedger | None  # None: it keeps none, as runs of earlier versions
    came_from: Mapping[str, Path]  # role -> the run whose model it began with or learned from

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name


@dataclass(frozen=True, slots=True)
class Concerned:
    """A run whose model has learned from what is asked about."""

    run: KnownRun
    own: int  # of the events (or people), how many its own rows name
    through: Mapping[str, KnownRun]  # role -> the concerned run that it has this model of


def known_runs(roots: Sequence[Path]) -> list[KnownRun]:
    """Every run in these folders. Raises DataError for a damaged ledger."""
    folders = [path.parent for root in roots for path in sorted(root.expanduser().glob("*/manifest.json"))]
    return [_read(folder.resolve()) for folder in folders]


def concerned_by(runs: Sequence[KnownRun], asked: DataLedger) -> list[Concerned]:
    """The runs that learned from what `asked` names, each after all that it came from."""
    own = {run.folder: run.ledger.shared(asked) if run.ledger else 0 for run in runs}
    marked = {folder for folder, count in own.items() if count}
    while grown := {run.folder for run in runs if marked & set(run.came_from.values())} - marked:
        marked |= grown
    left = {run.folder: run for run in runs if run.folder in marked}
    by_folder = dict(left)
    found = []
    while left:
        first = [run for run in left.values() if not (left.keys() - {run.folder}) & set(run.came_from.values())]
        for run in first or list(left.values())[:1]:  # else they came from each other
            through = {role: by_folder[folder] for role, folder in run.came_from.items() if folder in by_folder}
            found.append(Concerned(run, own[run.folder], through))
            del left[run.folder]
    return found


def _read(folder: Path) -> KnownRun:
    paths = RunPaths(folder)
    came_from = {}
    for role, named in read_manifest(paths.manifest).current.came_from.items():
        given = Path(named)
        came_from[role] = (given if given.is_dir() else folder.parent / given.name).resolve()  # the root may have moved
    exports = list(paths.export.glob("step-*/config.json"))
    scores = any("ForSequenceClassification" in path.read_text(encoding="utf-8") for path in exports)
    return KnownRun(folder, scores, read_ledger(paths.data_ledger), came_from)
