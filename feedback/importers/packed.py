"""Files in a shell: gzip, zstd, bzip2, xz, and members of a zip archive, as streams of the bytes inside."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from enum import Enum
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
from raylign.conf.errors import DataError

PACKED_SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException, RuntimeError)
"""What reading a broken shell raises (an encrypted zip a RuntimeError)."""


class Shell(Enum):
    """What the bytes of a file are wrapped in, by its first ones."""

    NONE = b""
    GZIP = b"\x1f\x8b"
    ZSTD = b"\x28\xb5\x2f\xfd"
    BZIP2 = b"BZh"
    XZ = b"\xfd7zXZ\x00"
    ZIP = b"PK\x03\x04"


def shell_of(path: Path) -> Shell:
    """By content. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((shell for shell in Shell if shell is not Shell.NONE and head.startswith(shell.value)), Shell.NONE)


def opened(path: Path, shell: Shell, member: str | None = None) -> IO[bytes]:
    """The bytes inside. Raises one of UNREADABLE."""
    if shell is Shell.GZIP:
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if shell is Shell.BZIP2:
        return cast("IO[bytes]", bz2.open(path, "rb"))
    if shell is Shell.XZ:
        return cast("IO[bytes]", lzma.open(path, "rb"))
    if shell is Shell.ZSTD:
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    if shell is Shell.ZIP:
        return zipfile.ZipFile(path).open(member or "")
    return path.open("rb")


def members(path: Path) -> list[str]:
    """The files in a zip archive by name, what macOS adds left out. Raises DataError when it is broken."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except UNREADABLE as error:
        if path.suffix.lower() in (".xlsx", ".xlsm"):
            raise DataError(
                f"{path}: is an Excel workbook that cannot be read ({error}); save it as CSV UTF-8."
            ) from error
        raise DataError(f"{path}: is a zip archive that cannot be read ({error}).") from error
    return sorted(name for name in names if not name.startswith("__MACOSX/") and not name.endswith(".DS_Store"))


def is_workbook(names: list[str]) -> bool:
    """Whether a zip archive's members are an Excel workbook's."""
    return "xl/workbook.xml" in names or "xl/workbook.bin" in names


def logical_suffix(name: str) -> str:
    """The suffix of what is inside: .jsonl of log.jsonl.zst."""
    name = name.lower()
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return Path(name).suffix
