"""What a run leaves on disk and who may write it: layout, lock, and the one open run folder of a process."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import date
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml
from raylign.conf.errors import UserError
from raylign.conf.schema import RunConfig
from raylign.data.data_ledger import FILE as LEDGER_FILE
from raylign.data.data_ledger import DataLedger, read_ledger
from raylign.records.atomic import write_atomic
from raylign.records.folder_lock import hold
from raylign.records.manifest import Manifest, changed_inputs, describe_start, read_manifest
from raylign.records.redaction import Redactor
from raylign.records.summary import RunSummary, write_summary

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SUBFOLDERS = ("samples", "checkpoints", "export", "eval", "logs")


class RunPaths:
    """Where everything of a run lies (design: what a run leaves on disk). Opens no lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / ".lock"
        self.resolved = path / "resolved.yaml"
        self.overrides = path / "overrides.yaml"
        self.manifest = path / "manifest.json"
        self.metrics = path / "metrics.jsonl"
        self.ledger = path / "ledger.jsonl"  # of an online run: how every sample ended
        self.journal = path / "journal"  # of an online run: batches that are trained again after a crash
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"
        self.eval = path / "eval"
        self.answers = path / "eval" / "answers.jsonl"
        self.suites = path / "eval" / "suites.json"  # of a run that names some: before and after
        self.logs = path / "logs"
        self.judged = path / "judged"  # what judges said, made when they say something
        self.alerts = path / "alerts.jsonl"
        self.data_ledger = path / LEDGER_FILE  # whose judgements it was trained on, by hashes
        self.sinks_sent = path / ".sinks_sent"  # the last step that W&B and its like have on disk for certain
        self.wandb_address = path / "wandb_address"  # the page of the run, once it has had one

    def samples_file(self, step: int) -> Path:
        """The samples of one step."""
        return self.samples / f"step-{step:06d}.parquet"

    def wandb_run_id(self, given: str = "") -> str:
        """The W&B run's id, `given` or made once and kept, so that a resumed run continues in the same W&B run."""
        path = self.path / "wandb_run_id"
        if not path.exists():
            write_atomic(path, given or uuid.uuid4().hex[:12])
        return path.read_text(encoding="ascii")


class RunFolder(RunPaths):
    """A run folder held by this process alone until `close`; dying lets go of it too."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        super().__init__(path)
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, run_root: str | Path, name: str, *, resume: bool) -> Self:
        """Create `<run_root>/<name>`, or open it again when `resume`.

        Raises UserError for a bad name, a folder another process holds, a used folder without `resume`, and an
        existing folder that is no run folder.
        """
        if not _NAME.fullmatch(name) or set(name) == {"."}:
            raise UserError(f"name={name!r}: a run name is 1 to 64 of A-Z a-z 0-9 . _ - (and not only dots)")
        path = Path(run_root) / name
        if path.exists() and not path.is_dir():
            raise UserError(f"name={name}: {path} is a file; choose another name=")
        _refuse_foreign_folder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock_fd = hold(path / ".lock", f"name={name}", "stop that run or choose another name=")
        except OSError as error:
            raise UserError(
                f"run_root={run_root}: cannot write {path} ({error.strerror}); choose another run_root="
            ) from error
        folder = cls(path, lock_fd)
        if folder.is_used and not resume:
            folder.close()
            raise UserError(
                f"name={name}: {path} already holds a run; choose another name=, or continue it with "
                "checkpoint.resume=auto"
            )
        for sub in _SUBFOLDERS:
            (path / sub).mkdir(exist_ok=True)
        return folder

    @property
    def is_used(self) -> bool:
        """Whether a run has started here before."""
        return self.manifest.exists() or self.metrics.exists()

    def write_config(self, config: RunConfig, overrides: Sequence[str], redactor: Redactor) -> None:
        """resolved.yaml (every setting, plain values) and overrides.yaml (what the user typed), without secrets."""
        resolved = redactor.tree(plain(config))
        write_atomic(self.resolved, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        write_atomic(self.overrides, yaml.safe_dump(redactor.arguments(overrides), allow_unicode=True))

    def write_manifest(
        self,
        argv: Sequence[str],
        inputs: Mapping[str, Path],
        redactor: Redactor,
        *,
        resumed_step: int | None = None,
        skipped: Sequence[str] = (),
        came_from: Mapping[str, str] | None = None,
        hub_models: Mapping[str, str] | None = None,
        data_ledger: DataLedger | None = None,
    ) -> tuple[Manifest, tuple[str, ...]]:
        """Add this start to manifest.json.

        `inputs` names what the run reads ("data.train", "policy.model", ...); `skipped` says which newer checkpoints
        than `resumed_step`'s could not be used; `came_from` names the run folders its models are of, by role,
        `hub_models` those of a hub with their revision; `data_ledger` says whose judgements data.train was made from,
        and is added to that of earlier starts. Returns the manifest, whose last start is this one, and the names whose
        content differs from the start before.
        """
        before = read_manifest(self.manifest) if self.manifest.exists() else None
        earlier = before.starts if before else ()
        start = replace(
            describe_start(len(earlier), redactor.arguments(argv), inputs),
            resumed_step=resumed_step,
            skipped=tuple(skipped),
            came_from=dict(came_from or {}),
            hub_models=dict(hub_models or {}),
            data_ledgers={"data.train": data_ledger.id} if data_ledger else {},
        )
        if data_ledger is not None:
            earlier_rows = read_ledger(self.data_ledger) or DataLedger()
            write_atomic(self.data_ledger, (data_ledger | earlier_rows).to_json())
        today = before.first_date if before else date.today().isoformat()
        manifest = Manifest(name=self.path.name, starts=(*earlier, start), first_date=today)
        write_atomic(self.manifest, manifest.to_json())
        return manifest, changed_inputs(earlier[-1], start) if earlier else ()

    def write_summary(self, summary: RunSummary) -> None:
        """summary.json."""
        write_summary(self.summary, summary)

    def close(self) -> None:
        """Let go of the folder; a second call does nothing."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def plain(value: object) -> object:
    """A configuration as mappings, lists and scalars: enums by name, tuples as lists, paths as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _refuse_foreign_folder(path: Path) -> None:
    ours = (".lock", "manifest.json", "metrics.jsonl")
    if path.is_dir() and any(path.iterdir()) and not any((path / name).exists() for name in ours):
        raise UserError(
            f"name={path.name}: {path} is not empty and is not a run folder; choose another name= or run_root="
        )
