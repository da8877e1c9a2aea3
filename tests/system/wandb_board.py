"""A server of W&B's protocol on this machine (openwandb), and what it was sent."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.free_port import free_port

KEY = "local" + "0" * 40
"""The key that openwandb gives its first user."""


@dataclass(frozen=True)
class Board:
    """The local server, and its own tables."""

    url: str
    folder: Path

    def rows(self, query: str, *values: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.folder / "openwandb.db", timeout=30.0)) as opened:
            return opened.execute(query, values).fetchall()

    def steps(self, run: str, key: str) -> list[float]:
        """What was sent under one name, in the order of arrival."""
        found = self.rows("select value from metrics where run_id = ? and key = ? order by id", run, key)
        return [float(str(value)) for (value,) in found]

    def curves(self, run: str) -> dict[int, dict[str, float]]:
        """Step -> its numbers as the run's page draws them, the later over the earlier where a step was sent twice."""
        sent = self.rows("select step, key, value from metrics where run_id = ? order by id", run)
        lines: list[dict[str, float]] = []
        before = None
        for line, key, value in sent:
            if line != before or key in lines[-1]:  # a resumed life may count its lines from 0 again
                lines.append({})
            lines[-1][str(key)], before = float(str(value)), line
        steps: dict[int, dict[str, float]] = {}
        for values in lines:
            steps.setdefault(int(values.pop("train/global_step")), {}).update(values)
        return steps

    def ended(self, run: str) -> int:
        """How often the run was said to be complete."""
        return (self.folder / "log").read_text().count(f"Run {run} marked as finished")


@contextmanager
def local_board(folder: Path) -> Iterator[Board]:
    """The server, started in `folder` and ended."""
    port = free_port()
    command = [sys.executable, "-m", "openwandb", "serve", "--host", "127.0.0.1", "-p", str(port)]
    command += ["--data-dir", str(folder), "--base-url", f"http://127.0.0.1:{port}"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, server, folder / "log")
            yield Board(url, folder)
        finally:
            server.terminate()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 200.0
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5.0):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"openwandb did not start (exit code {server.poll()}): {log.read_text()[-2000:]}")
