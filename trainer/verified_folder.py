"""A folder whose every byte is vouched for by a manifest, and the careful writes that get it to disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a file is vouched for by: read back from the disk by whoever wrote it."""

    num_bytes: int
    sha256: str


def find_damage(path: Path, *, vouched: Mapping[str, FileDigest] | None = None) -> str | None:
    """What is wrong with a folder, by its manifest; None when every file is there, whole and unchanged.

    Files of `vouched` were read back a moment ago by their writers: of them only presence and size are looked at.
    """
    manifest_file = path / MANIFEST
    if not manifest_file.is_file():
        return f"it has no {MANIFEST}"
    try:
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        files = {str(n): (int(f["bytes"]), str(f["sha256"])) for n, f in manifest["files"].items()}
        written_as = manifest["format"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is not readable"
    if written_as != _FORMAT:
        return f"it has format {written_as}, this version reads {_FORMAT}"
    extra = {name for name in _files_below(path) if name != MANIFEST} - set(files)
    if extra:
        return f"{sorted(extra)[0]} is not in its {MANIFEST}"
    for name, (num_bytes, _) in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != num_bytes:
            return f"{name} has {file.stat().st_size} bytes, not {num_bytes}"
    looked_at = [name for name in files if name not in (vouched or {})]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_sha256, [path / name for name in looked_at]))
    for name, digest in zip(looked_at, digests, strict=True):
        if digest != files[name][1]:
            return f"{name} has changed (its sha256 is not the manifest's)"
    return None


def write_manifest(path: Path, *, vouched: Mapping[str, FileDigest] | None = None) -> None:
    """Write the size and sha256 of every file below `path`, last of all; those not `vouched` for are flushed here."""
    names = _files_below(path)
    known = dict(vouched or {})
    with ThreadPoolExecutor() as pool:
        unknown = [name for name in names if name not in known]
        known |= zip(unknown, pool.map(flush_and_hash, [path / name for name in unknown]), strict=True)
    files = {name: {"bytes": known[name].num_bytes, "sha256": known[name].sha256} for name in names}
    for folder in {(path / name).parent for name in names}:
        sync_folder(folder)
    write_json(path / MANIFEST, {"format": _FORMAT, "files": files})
    sync_folder(path)


def _files_below(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def flush_and_hash(path: Path) -> FileDigest:
    """Force a file to disk and read it back."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        num_bytes = os.fstat(file.fileno()).st_size
    return FileDigest(num_bytes, _sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """A JSON file that is there whole or not at all."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file: a reader sees the old or the new one, also after a power cut."""
    staging = path.with_name(f".{path.name}.writing")
    with staging.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's own entries: a rename is durable only then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
