"""Runs an answer's code as a program: as `python answer.py` would, with this process's standard input and output.

In the sandbox, in a child of its first process.
"""

from __future__ import annotations

import sys
import traceback
import types

OUT_OF_MEMORY = 77
"""Exit status of a program that ended with MemoryError. One that exits with it itself is counted there too."""


def main(argument: dict[str, str]) -> int:
    """The program's exit status. `argument`: its text as `code`."""
    sys.argv = ["answer.py"]
    here = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        exec(compile(argument["code"], "answer.py", "exec"), here.__dict__)
    except SystemExit:
        raise
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
