"""A folder whose every byte is vouched for by a manifest, and the careful writes that get it to disk."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "manifest.json"
_FORMAT = 1


def find_damage(path: Path) -> str | None:
    """What is wrong with a folder, by its manifest; None when every file is there, whole and unchanged."""
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
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_sha256, [path / name for name in files]))
    for (name, (_, sha256)), digest in zip(files.items(), digests, strict=True):
        if digest != sha256:
            return f"{name} has changed (its sha256 is not the manifest's)"
    return None


def write_manifest(path: Path) -> None:
    """Flush every file below `path` and write the size and sha256 of each, last of all."""
    names = _files_below(path)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_flush_and_hash, [path / name for name in names]))
    files = {n: {"bytes": (path / n).stat().st_size, "sha256": d} for n, d in zip(names, digests, strict=True)}
    for folder in {(path / name).parent for name in names}:
        sync_folder(folder)
    write_json(path / MANIFEST, {"format": _FORMAT, "files": files})
    sync_folder(path)


def _files_below(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def _flush_and_hash(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _sha256(path)


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
