"""Whole files or nothing: a reader never sees half a file, whatever kills the writer."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a neighbour, force it to disk, then rename over `path`. Text is UTF-8."""
    partial = partial_path(path)
    data = content.encode() if isinstance(content, str) else content
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(partial, path)


def partial_path(path: Path) -> Path:
    """Where a writer that needs a path of its own puts the file before `publish`."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def publish(partial: Path, path: Path) -> None:
    """Rename a finished file into place and force the folder entry to disk."""
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
