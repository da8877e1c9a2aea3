"""`raylign export`: a run's Hugging Face folder, copied out of the run."""

from __future__ import annotations

import shutil
from pathlib import Path

from raylign.conf.errors import UserError


def export(run_dir: Path, to: Path, step: int | None) -> Path:
    """Copy `export/step-N` of a run to `to`, the last one when `step` is None. Returns `to`.

    Raises UserError when the run has no such export or `to` is in use.
    """
    found = {int(folder.name.removeprefix("step-")): folder for folder in (run_dir / "export").glob("step-*")}
    if not found:
        raise UserError(f"{run_dir} has no export yet: a run writes one at its end; resume it first.")
    if step is not None and step not in found:
        raise UserError(f"--step {step}: {run_dir} has exports of step {', '.join(map(str, sorted(found)))} only.")
    if to.exists():
        raise UserError(f"--to {to}: the folder is in use; name one that does not exist yet.")
    part = to.with_name(f"{to.name}.part")
    if part.exists():
        shutil.rmtree(part)
    shutil.copytree(found[max(found) if step is None else step], part)
    part.rename(to)
    return to
