"""Where a model lies that a setting names: a folder, a finished run, or a name on a hub. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

BEST = "BEST"
"""File in a run's export folder that names the best step's export, when the run chose one by a metric."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The folder to load, and how it was found."""

    path: str
    note: str  # empty for a plain folder, else a sentence's end: which export of the run, and why


_HUB_NAME = re.compile(r"(?!models--)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def is_hub_name(named: str) -> bool:
    """True for `owner/name` and `owner/name@revision`, unless it leads into a folder that is here."""
    given = Path(named).expanduser()
    return bool(_HUB_NAME.fullmatch(named)) and not given.exists() and not given.parent.exists()


def is_run(folder: Path) -> bool:
    """True for the folder of a run."""
    return (folder / "resolved.yaml").is_file() or (
        (folder / "manifest.json").is_file() and (folder / "export").is_dir()
    )


def model_folder(named: str) -> ModelFolder:
    """The folder that `named` names. A run gives its best step's export when it chose one, else its newest.

    Raises ValueError for a run without an export: it did not finish.
    """
    run = Path(named).expanduser()
    if not named or (run / "config.json").is_file() or not is_run(run):
        return ModelFolder(str(run) if named else named, "")
    pointer = run / "export" / BEST
    if pointer.is_file():
        best = run / "export" / pointer.read_text(encoding="utf-8").strip()
        if (best / "config.json").is_file():
            return ModelFolder(str(best), f"its best export {best.name} is used")
    exports = [path for path in (run / "export").glob("step-*") if (path / "config.json").is_file()]
    if not exports:
        raise ValueError("is a run without an export, so it has not finished; resume it first")
    newest = max(exports, key=lambda path: int(path.name.removeprefix("step-")))
    return ModelFolder(str(newest), f"its newest export {newest.name} is used")
