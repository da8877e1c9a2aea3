"""The log of a job that runs elsewhere, as it arrives."""

from __future__ import annotations

from collections.abc import Callable


class JobLog:
    """A job's log that arrives in pieces of any length, told line by line.

    It can be read again from its beginning, as after a connection that broke: what has been told is not told again.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._seen = 0  # characters of the present reading
        self._told = 0  # characters that `_tell` has had, or that wait for the end of their line
        self._open = ""  # those that wait

    def begin(self) -> None:
        """The next piece is the log's beginning."""
        self._seen = 0

    def add(self, text: str) -> None:
        """One more piece. Ray sends what is there when it looks, which may end within a line."""
        new = text[max(0, self._told - self._seen) :]
        self._seen += len(text)
        self._told = max(self._told, self._seen)
        *lines, self._open = (self._open + new).split("\n")
        for line in lines:
            self._tell(line)

    def end(self) -> None:
        """The log is whole: its last line may have no end."""
        if self._open:
            self._tell(self._open)
        self._open = ""
