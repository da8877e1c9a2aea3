"""A process for a user's own code: started with a pipe and a folder, its output logged without secrets, ended whole."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from raylign.records.redaction import Redactor

_END_S = 5.0
_MOST_PRINTED = 1 << 20  # characters of one process's output that are logged
_LONGEST_LINE = 2000

_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from {host} import main; main()"
"""In a submitted job our package may lie where only Ray has put it on this process's path."""


@dataclass(slots=True)
class OwnProcess:
    """A started process. What it runs is a module with `main()`, as reward/function_host.py."""

    process: subprocess.Popen[bytes]
    pipe: Connection[Any, Any]
    folder: str

    @classmethod
    def start(cls, host: str, name: str, logger: logging.Logger) -> OwnProcess:
        """Run `main()` of the module `host`. `name`: what its output is logged as, by `logger`."""
        here, there = Pipe()
        folder = tempfile.mkdtemp(prefix="raylign-own-")
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT.format(host=host), str(there.fileno()), folder, *filter(None, sys.path)],
            stdin=subprocess.PIPE,  # its lifeline
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[there.fileno()],
        )
        there.close()
        assert process.stdout is not None
        threading.Thread(target=_log_lines, args=(name, process.stdout, logger), daemon=True).start()
        return cls(process, here, folder)

    @property
    def running(self) -> bool:
        """False once it has ended."""
        return self.process.poll() is None

    def exit_code(self) -> int | None:
        """Of a process whose pipe has closed, which happens a moment before the code is there."""
        try:
            return self.process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Kill it and remove its folder."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _log_lines(name: str, out: IO[bytes], logger: logging.Logger) -> None:
    """Until the process ends. What is past the bound is read and dropped: a full pipe would stop the code."""
    redactor, printed = Redactor.from_environ(os.environ), 0
    with out:
        while line := out.readline(_LONGEST_LINE):
            if printed > _MOST_PRINTED:
                continue
            printed += len(line)
            logger.info("%s: %s", name, redactor.text(line.decode(errors="replace").rstrip()))
            if printed > _MOST_PRINTED:
                logger.warning("%s prints more than %d characters; the rest is not logged", name, _MOST_PRINTED)
