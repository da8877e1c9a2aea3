"""R03: what a disk may hold after a power cut, from what a program has asked of it. The program runs once.

A cut keeps every byte and every folder entry that was forced to disk before it. Of the rest it keeps what it likes:
each new, renamed or removed entry is there or not, and a file that was not forced to disk has its old bytes, a part of
the new ones, or zeros. A rename is atomic.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from unittest.mock import patch

ROOT = 0
Entry = tuple[int, str]  # folder, name


@dataclass(frozen=True)
class Moved:
    """One change of folder entries: `node` is now at `after` and no longer at `before`; None: nowhere."""

    node: int
    before: Entry | None
    after: Entry | None


@dataclass(frozen=True)
class Written:
    node: int
    content: bytes


@dataclass(frozen=True)
class Forced:
    """fsync: the bytes of a file, or the entries of a folder."""

    node: int


@dataclass
class Trace:
    """Everything the traced code did below `root`, by looking at the folder around each of its calls."""

    root: Path
    done: list[Moved | Written | Forced] = field(default_factory=list)
    folders: set[int] = field(default_factory=lambda: {ROOT})
    before: int = 0  # events that made what was there before the traced code ran
    _nodes: dict[tuple[int, int], int] = field(default_factory=dict)
    _entries: dict[Entry, int] = field(default_factory=dict)
    _contents: dict[int, bytes] = field(default_factory=dict)
    _one: RLock = field(default_factory=RLock)  # files are hashed by threads
    _held: list[int] = field(default_factory=list)  # open, so that no number of an inode is used twice

    def look(self) -> None:
        """Note what has changed since the last look."""
        with self._one:
            self._look()

    def _look(self) -> None:
        entries = dict(self._walk(self.root, ROOT))
        gone = {node: entry for entry, node in self._entries.items() if entries.get(entry) != node}
        come = {node: entry for entry, node in entries.items() if self._entries.get(entry) != node}
        for node in sorted(gone.keys() | come.keys()):
            self.done.append(Moved(node, gone.get(node), come.get(node)))
        self._entries = entries
        for entry, node in entries.items():
            if node not in self.folders:
                content = self._path(entry).read_bytes()
                if content != self._contents.get(node):
                    self._contents[node] = content
                    self.done.append(Written(node, content))

    def forced(self, descriptor: int) -> None:
        """Note an fsync."""
        with self._one:
            self._look()
            self.done.append(Forced(self._node(os.fstat(descriptor))))

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    def _walk(self, folder: Path, number: int) -> Iterator[tuple[Entry, int]]:
        for item in os.scandir(folder):
            node = self._node(item.stat(), item.path)
            yield (number, item.name), node
            if item.is_dir():
                self.folders.add(node)
                yield from self._walk(Path(item.path), node)

    def _node(self, stat: os.stat_result, path: str | None = None) -> int:
        key = (stat.st_dev, stat.st_ino)
        if key == (self.root.stat().st_dev, self.root.stat().st_ino):
            return ROOT
        if key not in self._nodes:
            assert path is not None, "forced to disk before it was seen"
            self._held.append(os.open(path, os.O_RDONLY))
            self._nodes[key] = len(self._nodes) + 1
        return self._nodes[key]

    def _path(self, entry: Entry) -> Path:
        parts = [entry[1]]
        folder = entry[0]
        while folder != ROOT:
            folder, name = next(e for e, node in self._entries.items() if node == folder)
            parts.append(name)
        return self.root.joinpath(*reversed(parts))


@contextmanager
def traced(root: Path) -> Iterator[Trace]:
    """Everything below `root` that Python's `os` is asked for meanwhile; what is there already is on disk."""
    trace = Trace(root)
    trace.look()
    trace.done += [Forced(node) for node in (*trace._nodes.values(), ROOT)]
    trace.before = len(trace.done)
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        trace.forced(descriptor)
        sync(descriptor)

    def watched(call):  # type: ignore[no-untyped-def]
        def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
            trace.look()
            result = call(*args, **kwargs)
            trace.look()
            return result

        return wrapped

    names = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir")
    patches = [patch.object(os, name, watched(getattr(os, name))) for name in names]
    with patch.object(os, "fsync", fsync):
        for one in patches:
            one.start()
        try:
            yield trace
        finally:
            for one in patches:
                one.stop()
            trace.look()
            trace.close()


def disk_after(trace: Trace, cut: int, draw: random.Random) -> tuple[dict[Entry, int], dict[int, bytes]]:
    """Entries and contents after a power cut when `cut` of the noted things were done."""
    done = trace.done[:cut]
    last_forced: dict[int, int] = {}
    for at, event in enumerate(done):
        if isinstance(event, Forced):
            last_forced[event.node] = at
    entries: dict[Entry, int] = {}
    contents: dict[int, bytes] = {}
    for at, event in enumerate(done):
        if isinstance(event, Moved):
            places = [entry[0] for entry in (event.before, event.after) if entry is not None]
            safe = any(last_forced.get(folder, -1) > at for folder in places)
            if safe or draw.random() < 0.5:
                if event.before is not None and entries.get(event.before) == event.node:
                    del entries[event.before]
                if event.after is not None:
                    entries[event.after] = event.node
        elif isinstance(event, Written):
            if last_forced.get(event.node, -1) > at:
                contents[event.node] = event.content
            else:
                part = event.content[: draw.randint(0, len(event.content))]
                old = contents.get(event.node, b"")
                contents[event.node] = draw.choice([old, part, event.content, b"\0" * len(event.content)])
    return entries, contents


def lay_out(trace: Trace, disk: tuple[dict[Entry, int], dict[int, bytes]], target: Path) -> None:
    """Write such a disk into an empty folder."""
    entries, contents = disk

    def fill(folder: int, path: Path) -> None:
        path.mkdir(exist_ok=True)
        for (parent, name), node in entries.items():
            if parent == folder:
                if node in trace.folders:
                    fill(node, path / name)
                else:
                    (path / name).write_bytes(contents.get(node, b""))

    fill(ROOT, target)
