"""Reward functions of a user's own: found, sent along with the files they need, and tried once before a run starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.machinery import PathFinder
from itertools import accumulate
from pathlib import Path

from raylign.reward.function_messages import FunctionCode, FunctionError, Loaded, Style
from raylign.reward.function_process import FunctionProcess

START_TIMEOUT_S = 120.0
_MOST_BYTES = 1 << 20  # of one file that goes along


@dataclass(frozen=True, slots=True)
class FunctionSource:
    """A function that can be used."""

    name: str  # of its component in metrics
    code: FunctionCode
    style: Style
    columns: tuple[str, ...] = ()  # of the rows, without which it cannot be called


def read_source(
    path: str, *, name: str = "", style: str = "auto", start_timeout_s: float = START_TIMEOUT_S
) -> FunctionSource:
    """The function that `FILE.py:NAME` or `module:NAME` names, imported once in a process of its own to see it work.

    Raises FunctionError in one sentence: no such file or function, an import that fails or does not end, a signature
    nobody knows, or another one than `style` says.
    """
    code = replace(named_code(path, "function"), wanted=None if style == "auto" else Style(style))
    loaded = _tried(code, start_timeout_s)
    assert loaded.style is not None
    return FunctionSource(name or code.function, code, loaded.style, loaded.columns)


def named_code(path: str, kind: str) -> FunctionCode:
    """What `FILE.py:NAME` or `module:NAME` names, with the files that go along; nothing is imported. `kind`: function
    or class, for messages. Raises FunctionError for no name, or no such file."""
    where, _, function = path.rpartition(":")
    if not where or not function:
        raise FunctionError(f"it names no {kind}; write FILE.py:NAME or module:NAME")
    files: tuple[tuple[str, str], ...] = ()
    module = where
    if where.endswith(".py"):
        file = Path(where).expanduser()
        if not file.is_file():
            raise FunctionError(f"there is no file {where} (seen from {Path.cwd()}); correct the path")
        files = _with_neighbours(file)
        module = file.stem
    return FunctionCode(path, function, module, files, None)


def sent_files(path: str) -> list[Path]:
    """The files of a function that go along with it; empty for an installed module."""
    where = path.rpartition(":")[0]
    file = Path(where).expanduser()
    if not where.endswith(".py") or not file.is_file():
        return []
    return [file.parent / name for name, _ in _with_neighbours(file)]


def installed_file(path: str) -> Path | None:
    """The file of `module:NAME`, found without importing anything; None for a file that goes along (`sent_files`), and
    where there is no such module."""
    module = path.rpartition(":")[0]
    if module.endswith(".py") or not module:
        return None
    folders: Sequence[str] | None = None
    parts = module.split(".")
    for number, name in enumerate(accumulate(parts, "{}.{}".format), start=1):
        spec = PathFinder.find_spec(name, folders)
        folders = None if spec is None else spec.submodule_search_locations
        if spec is None or (folders is None and number < len(parts)):
            return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _with_neighbours(file: Path) -> tuple[tuple[str, str], ...]:
    """The file and the Python files beside it that can be read. Raises FunctionError when the file itself cannot."""
    found: list[tuple[str, str]] = []
    for path in sorted(file.parent.glob("*.py")):
        try:
            if path.stat().st_size > _MOST_BYTES:
                if path.name == file.name:
                    raise FunctionError(f"{file} is larger than {_MOST_BYTES >> 20} MiB; move its data elsewhere")
                continue
            found.append((path.name, path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            if path.name == file.name:
                raise FunctionError(f"{file} cannot be read: {error}") from error
    return tuple(found)


@lru_cache(maxsize=64)  # a start asks several times; a file that changes meanwhile is another key
def _tried(code: FunctionCode, start_timeout_s: float) -> Loaded:
    process = FunctionProcess(code, timeout_s=start_timeout_s, start_timeout_s=start_timeout_s)
    try:
        return process.load()
    finally:
        process.stop()
