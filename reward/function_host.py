"""The process of one reward function, started with a file descriptor and a folder as its arguments.

What to load arrives over the first; its files are put into the second. It ends when its parent does: standard input is
the parent's lifeline.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from raylign.reward.function_call import Caller, columns_needed, error_text, recognised
from raylign.reward.function_messages import Ask, FunctionCode, FunctionError, Hello, Loaded, Measure


def main() -> None:
    """Load, answer, then score batch after batch until the parent closes the pipe."""
    folder = Path(sys.argv[2])  # the parent's, which removes it
    _end_with_parent(folder)
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    del sys.argv[1:]  # nothing of it is for the function's module
    hello: Hello = pipe.recv()
    try:
        function = _load(hello.code, folder)
        style = recognised(function, hello.code.path, hello.code.wanted)
    except FunctionError as error:
        pipe.send(Loaded(str(error), None))
        return
    pipe.send(Loaded("", style, columns_needed(function, style)))
    caller = Caller(function, style)
    while True:
        try:
            ask: Ask | Measure = pipe.recv()
        except EOFError:  # it may have ended without a word
            shutil.rmtree(folder, ignore_errors=True)
            return
        if isinstance(ask, Measure):
            pipe.send(caller.measure(ask.samples))
        else:
            caller.score(ask.samples, pipe.send)


def _load(code: FunctionCode, folder: Path) -> Callable[..., Any]:
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
        raise FunctionError(f"{code.module} has no function {code.function!r}; it has {', '.join(names[:8]) or 'none'}")
    return found


def _end_with_parent(folder: Path) -> None:
    """Whoever reads the function's standard input gets nothing; the parent's end of it closing ends the process."""
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        os.read(lifeline, 1)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
