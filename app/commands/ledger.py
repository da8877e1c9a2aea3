"""`raylign ledger`: whether every sample of a run ended exactly once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml
from raylign.conf.errors import RunFailed, UserError
from raylign.records.ledger_check import check_ledger


def verify(folder: Path, tell: Callable[[str], object]) -> int:
    """Say what the ledger of the run in `folder` holds; the exit code. Raises UserError when it has none."""
    resolved = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))
    report = check_ledger(folder, max_staleness=resolved["rollout"]["max_staleness"])
    if report is None:
        raise UserError(f"{folder} has no ledger: it is not an online run, or an older version wrote it")
    for sentence in report.sentences():
        tell(sentence)
    return RunFailed.exit_code if report.problems else 0
