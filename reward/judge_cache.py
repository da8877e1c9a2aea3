"""A judge's replies, kept in the run's folder: no answer is paid for twice, and everything can be looked up.

One file a process, each line `{"key": ..., "reply": ...}`; all files of a judge are read at start. Without a folder,
or where it cannot be written, replies are kept in memory.
"""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path

_LONGEST = 16_000  # characters of a reply that are kept: its end, where the score is

logger = logging.getLogger(__name__)


class JudgeCache:
    """Replies by key."""

    def __init__(self, folder: str, name: str) -> None:
        """`folder`: of the run's judges; "": none."""
        self._replies: dict[str, str] = {}
        self._file: Path | None = None
        if not folder:
            return
        path = Path(folder)
        if not path.parent.is_dir():
            logger.warning("judge %s: %s is not on this machine, so its replies are not kept", name, path.parent)
            return
        for file in sorted(path.glob(f"{name}-*.jsonl")):
            self._read(file)
        self._file = path / f"{name}-{uuid.uuid4().hex[:12]}.jsonl"

    def get(self, key: str) -> str | None:
        """The reply; None where there is none yet."""
        return self._replies.get(key)

    def put(self, key: str, reply: str) -> None:
        """Keep it. A disk that is full costs the file, not the reward."""
        self._replies[key] = reply[-_LONGEST:]
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "reply": self._replies[key]}) + "\n")
        except OSError as error:
            logger.warning("%s cannot be written (%s); replies are kept in memory from now on", self._file, error)
            self._file = None

    def _read(self, file: Path) -> None:
        """Lines that a dying process left in parts are skipped: their answers are judged again."""
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found = json.loads(line)
                self._replies[str(found["key"])] = str(found["reply"])
            except (ValueError, KeyError, TypeError):
                continue
