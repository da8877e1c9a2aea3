"""Algorithms and callbacks of a user's own, named as FILE.py:NAME or module:NAME and imported into this process.

Reward functions and metrics are not imported here: they run in processes of their own (reward/function_process.py).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

IMPORT_TIMEOUT_S = 120.0
T = TypeVar("T")


class OwnCodeError(ValueError):
    """Code that cannot be used. The message says why, without naming the setting."""


class TooLong(Exception):
    """A call was not done by its deadline."""


def is_own(named: str) -> bool:
    """True for what names code, not a built-in choice."""
    return ":" in named or named.endswith(".py")


def load_named(named: str, kind: str = "class", *, timeout_s: float = IMPORT_TIMEOUT_S) -> object:
    """The object that `named` names. Raises OwnCodeError when there is no such file, module or name, or when the import
    fails or takes longer than `timeout_s` seconds. `kind`: what is expected, for the messages."""
    where, _, name = named.rpartition(":")
    if not where or not name:
        example = f"{named.rstrip(':') or 'my.py'}:{'Mine' if kind == 'class' else 'mine'}"
        raise OwnCodeError(f"names no {kind}; write FILE.py:NAME or module:NAME, as {example}")
    try:
        module = within(timeout_s, lambda: _module(where))
    except OwnCodeError:
        raise
    except TooLong as error:
        raise OwnCodeError(f"{where} was not imported within {timeout_s:g} s; do less at import") from error
    except SystemExit as error:
        raise OwnCodeError(f"{where} ends the process when imported; put that under `if __name__`") from error
    except Exception as error:  # a user's module may raise anything
        raise OwnCodeError(f"{where} cannot be imported: {first_line(error)}") from error
    if not hasattr(module, name):
        own = {n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
        known = sorted(n for n in own if not n.startswith("_"))
        raise OwnCodeError(f"{where} has no {kind} {name}; it has {', '.join(known) or 'none'}")
    return getattr(module, name)


def within(timeout_s: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises, run in a thread. Raises TooLong after `timeout_s` seconds; the thread is then left
    behind, since Python cannot end one, and ends with the process."""
    done: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:  # SystemExit too: it would end this thread alone, and silently
            done.put((None, error))

    threading.Thread(target=run, name="own-code", daemon=True).start()
    try:
        answer, raised = done.get(timeout=timeout_s)
    except queue.Empty as error:
        raise TooLong from error
    if raised is not None:
        raise raised
    return answer  # type: ignore[return-value]  # None only where `call` gave None


def modules_of(name: str) -> list[ModuleType]:
    """The module `name` and those of its own folder that it imported, if a file was loaded as it; else none.

    By the name and not by the file: that may have changed on disk since.
    """
    if not name.startswith(_PREFIX):
        return []
    own = sys.modules[name]
    folder = Path(str(own.__file__)).resolve().parent
    beside = [m for m in list(sys.modules.values()) if _lies_in(m, folder) and m.__name__ != "__main__"]
    return [own, *(m for m in beside if m is not own and not m.__name__.startswith(_PREFIX))]


def files_of(name: str) -> list[Path]:
    """The files of those modules, the named one first."""
    return list(dict.fromkeys(Path(str(module.__file__)) for module in modules_of(name)))


def first_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(": ")


_PREFIX = "raylign_own_"


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """True for a file of the folder. Some modules name one without a folder that is none: torch.ops has "_ops.py"."""
    file = Path(str(getattr(module, "__file__", None)))
    return file.is_absolute() and folder in file.resolve().parents and "site-packages" not in file.parts


def _module(where: str) -> ModuleType:
    return _from_file(Path(where).expanduser()) if where.endswith(".py") else importlib.import_module(where)


def _from_file(file: Path) -> ModuleType:
    """The file as a module whose name no other has, nor an earlier version of it; it may import what lies beside it."""
    if not file.is_file():
        raise OwnCodeError(f"{file}: there is no such file")
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file of the user's replaces no installed module
    digest = hashlib.sha256(folder.encode() + file.read_bytes()).hexdigest()[:12]
    name = f"{_PREFIX}{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
