"""What shows a run's numbers besides metrics.jsonl: one small protocol, and the thread that each sink lives on.

Everything a sink does happens on one daemon thread behind a bounded queue, so a slow, failing or hanging one costs no
step: the first failure is one warning, after it the thread ends and metrics.jsonl goes on.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from raylign.conf.schema import WandbMode
from raylign.records.alerts import Alert

_log = logging.getLogger(__name__)

_QUEUE_SIZE = 10_000  # steps; past it a sink loses points, metrics.jsonl does not

SAMPLE_COLUMNS = (
    "step", "policy_version", "prompt", "response", "reward", "components", "advantage", "tokens", "finish_reason",
)  # fmt: skip
"""The samples table's; a row is a sequence of as many cells."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """Data or weights by reference: what a run read or wrote, and where it lies. Nothing of it is copied."""

    name: str
    kind: str  # dataset or model
    path: Path
    digest: str  # "sha256:..." of the content, as in manifest.json; empty where it is not known
    output: bool  # written by this run
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SinkTarget:
    """A run as sinks are to name and describe it."""

    mode: WandbMode  # online, offline or disabled
    project: str
    name: str
    run_id: str
    folder: Path
    config: Mapping[str, object]  # redacted
    entity: str = ""
    group: str = ""
    job_type: str = ""
    tags: Sequence[str] = field(default=())
    system_metrics: bool = True


class Sink(Protocol):
    """An open run in one of the programs. Called from one thread, in order; whatever it raises ends the sink."""

    @property
    def where(self) -> str:
        """Its address or folder."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One step's finite numbers."""
        ...

    def samples(self, rows: Sequence[Sequence[object]]) -> None:
        """Rows of SAMPLE_COLUMNS."""
        ...

    def alert(self, alert: Alert) -> None:
        """Something that needs a person."""
        ...

    def artifact(self, artifact: Artifact) -> None:
        """Something that was read or written."""
        ...

    def finish(self, exit_code: int) -> None:
        """Send what is left."""
        ...

    def close(self) -> None:
        """Let go of processes and files, also after a failure; nothing follows."""
        ...


class SinkThread:
    """Runs every call of one sink in order on a thread that nobody has to wait for."""

    def __init__(self, name: str, open_sink: Callable[[], Sink], *, said: Callable[[str], None]) -> None:
        """`said` gets the sink's address when it is open, from this thread."""
        self.name = name
        self.where: str | None = None
        self._open_sink, self._said = open_sink, said
        self._calls: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(_QUEUE_SIZE)
        self._exit_code = 0
        self._lag_warned = False
        self._given_up = self._failed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, call: Callable[[Sink], None]) -> None:
        """Have the sink do something when its turn comes; never blocks."""
        if not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._lag_warned:
                _log.warning("%s is %d steps behind; metrics.jsonl has all of them", self.name, _QUEUE_SIZE)
            self._lag_warned = True

    def finish(self, exit_code: int, deadline_s: float) -> None:
        """Let the thread send what it has, for at most `deadline_s` seconds."""
        self._exit_code = exit_code
        deadline = time.monotonic() + deadline_s
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._calls.put(None, timeout=deadline_s)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._given_up = True
            _log.warning("%s did not finish in %.0f s; the run folder has everything", self.name, deadline_s)

    @property
    def ended(self) -> bool:
        """It has sent or written all that it was given. Not so after a failure: the next life has it to say again."""
        return not self._thread.is_alive() and not self._failed

    def _work(self) -> None:
        try:
            sink = self._open_sink()
            self.where = sink.where
            self._said(f"{self.name}: {sink.where}")
            try:
                while (call := self._calls.get()) is not None:
                    call(sink)
                sink.finish(self._exit_code)
            finally:
                sink.close()
        # The thread is expendable as a whole and sinks raise classes of their private modules: whatever it was is said
        # once and ends here.
        except Exception as error:
            self._failed = True
            if not self._given_up:
                _log.warning("%s stopped (%s: %s); metrics.jsonl goes on", self.name, type(error).__name__, error)
