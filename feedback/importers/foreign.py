"""Files that hold no rows we read, recognised by their first bytes, each with what to do about it."""

from __future__ import annotations

_TAR_AT = 257
_UNPACK = "unpack it and name the log inside"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", f"{_UNPACK} (7z x)"),
    (b"Rar!\x1a\x07", "a RAR archive", f"{_UNPACK} (unrar x)"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it (lz4 -d)"),
    (b"\x1f\x9d", "compressed with compress", "unpack it (uncompress)"),
    (b"ARROW1", "an Arrow (Feather) file", "save it as parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "save it as parquet"),
    (b"Obj\x01", "an Avro file", "save it as parquet or JSON lines"),
    (b"ORC", "an ORC file", "save it as parquet"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save it as parquet"),
    (b"\x93NUMPY", "a NumPy file", "save it as JSON lines"),
    (b"SQLite format 3\x00", "an SQLite database", "export the table as CSV or JSON lines"),
    (b"%PDF-", "a PDF", "export the table as CSV"),
    (b"\x80\x03", "a Python pickle, which is never read because it can run code", "save it as JSON lines"),
    (b"\x80\x04", "a Python pickle, which is never read because it can run code", "save it as JSON lines"),
    (b"\x80\x05", "a Python pickle, which is never read because it can run code", "save it as JSON lines"),
    (b"version https://git-lfs.github.com/", "a Git LFS pointer, not the file itself", "fetch it (git lfs pull)"),
)
_MARKUP: tuple[tuple[bytes, str, str], ...] = (
    (b"<!doctype html", "a web page, perhaps of a login", "download the export itself"),
    (b"<html", "a web page, perhaps of a login", "download the export itself"),
    (b"<", "XML", "export it as CSV or JSON"),
)


def refusal_of(head: bytes) -> str | None:
    """What a file is that begins with `head`, and what to do about it; None where it may hold rows."""
    if head[_TAR_AT : _TAR_AT + 5] == b"ustar":
        return f"is a tar archive; {_UNPACK} (tar xf)."
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:32].lower()
    found = next((entry for entry in _MAGIC if head.startswith(entry[0])), None)
    found = found or next((entry for entry in _MARKUP if start.startswith(entry[0])), None)
    return f"is {found[1]}; {found[2]}." if found else None
