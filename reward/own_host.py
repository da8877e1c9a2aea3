"""Inside a process for a user's own code: its files put in place, imported, and the process's end with its parent."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raylign.reward.function_call import error_text
from raylign.reward.function_messages import FunctionCode, FunctionError


def load_code(code: FunctionCode, folder: Path, kind: str = "function") -> Callable[..., Any]:
    """The function or class (`kind`, for messages) that `code` names. Raises FunctionError saying why it cannot be
    imported, or what its module has instead."""
    for name, text in code.files:
        (folder / name).write_text(text, encoding="utf-8")
    try:
        if code.files:
            sys.path.insert(0, str(folder))  # for what it imports from beside itself
            spec = importlib.util.spec_from_file_location(f"raylign_reward_{code.module}", folder / f"{code.module}.py")
            assert spec is not None and spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = loaded  # dataclasses and pickle look a module up by its name
            spec.loader.exec_module(loaded)
        else:
            loaded = importlib.import_module(code.module)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        beside = code.files and isinstance(error, FileNotFoundError)
        fix = "data files beside it are not sent along, name them by their whole path"
        hint = fix if beside else "correct it, or install what it needs"
        raise FunctionError(f"{code.module} cannot be imported: {error_text(error)}; {hint}") from error
    found = getattr(loaded, code.function, None)
    if not callable(found):
        names = [n for n, v in vars(loaded).items() if callable(v) and not n.startswith("_")]
        raise FunctionError(f"{code.module} has no {kind} {code.function!r}; it has {', '.join(names[:8]) or 'none'}")
    return found


def end_with_parent(folder: Path) -> None:
    """Whoever reads the code's standard input gets nothing; the parent's end of it closing ends the process."""
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        os.read(lifeline, 1)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
