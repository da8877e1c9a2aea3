"""The process of one reward function, started with a file descriptor and a folder as its arguments.

What to load arrives over the first; its files are put into the second. It ends when its parent does: standard input is
the parent's lifeline.
"""

from __future__ import annotations

import shutil
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from raylign.reward.function_call import Caller, columns_needed, recognised
from raylign.reward.function_messages import Ask, FunctionError, Hello, Loaded, Measure
from raylign.reward.own_host import end_with_parent, load_code


def main() -> None:
    """Load, answer, then score batch after batch until the parent closes the pipe."""
    folder = Path(sys.argv[2])  # the parent's, which removes it
    end_with_parent(folder)
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    del sys.argv[1:]  # nothing of it is for the function's module
    hello: Hello = pipe.recv()
    try:
        function = load_code(hello.code, folder)
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
