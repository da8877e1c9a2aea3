"""Watches a run for alerts between and after its steps, and gives each kind once, also over a resume."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from raylign.conf.schema import GuardConfig
from raylign.records.alerts import (
    DEFAULTS,
    Alert,
    AlertKind,
    Moment,
    StepRecord,
    best_step,
    find_alerts,
)
from raylign.records.atomic import write_atomic

_END_S = 10.0
_LOOK_EVERY_S = 30.0
_KEPT_STEPS = 2000
"""Enough to know where a run began in any run that a person still looks at; older records fall out of the middle."""


def read_alerts(path: Path) -> tuple[Alert, ...]:
    """alerts.jsonl, in the order they were found; a torn line and a kind this version does not know are skipped."""
    if not path.exists():
        return ()
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            found.append(Alert(AlertKind[entry["kind"]], entry["step"], entry["text"], entry["serious"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return tuple(found)


def _line(alert: Alert) -> str:
    return json.dumps({**asdict(alert), "kind": alert.kind.name}) + "\n"


class AlertWatch:
    """Belongs to the tracker. `tell` is called once a kind, from the caller's thread or from the watch's own."""

    def __init__(
        self,
        path: Path,
        *,
        keep_to_step: int,
        tell: Callable[[Alert], None],
        guard: GuardConfig = DEFAULTS,
        before: Sequence[StepRecord] = (),
    ) -> None:
        """`path`: alerts.jsonl; what is in it up to `keep_to_step` has been sent already (-1: nothing has).

        `before`: the steps of the run's earlier lives, against whose beginning the next ones are held.
        """
        self._path, self._tell, self._guard = path, tell, guard
        kept = [alert for alert in read_alerts(path) if alert.step <= keep_to_step]
        if path.exists():
            write_atomic(path, "".join(map(_line, kept)))
        self._sent = {alert.kind for alert in kept}
        self._records = list(before)
        # As `step` leaves them: the run's beginning, and its newest steps.
        del self._records[_KEPT_STEPS // 2 : max(_KEPT_STEPS // 2, len(before) - _KEPT_STEPS // 2)]
        self._lock = threading.Lock()
        self._last_step_at = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="alerts", daemon=True)
        self._thread.start()

    def step(self, record: StepRecord) -> None:
        """A finished step, or one that got further figures."""
        with self._lock:
            self._last_step_at = time.monotonic()
            if self._records and self._records[-1].step == record.step:
                self._records.pop()
            elif len(self._records) >= _KEPT_STEPS:
                del self._records[_KEPT_STEPS // 2]
            self._records.append(record)
            records = tuple(self._records)
        self._raise(records, Moment(disk_free_bytes=self._free()))

    def rewind(self, keep_to_step: int) -> None:
        """Later steps are done again; what was sent about them stays sent."""
        with self._lock:
            self._records = [record for record in self._records if record.step <= keep_to_step]

    def best_step(self, saved: Sequence[int]) -> int | None:
        """As alerts.best_step, of the steps so far."""
        with self._lock:
            return best_step(tuple(self._records), saved)

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._thread.join(_END_S)  # it may be asking a disk that does not answer

    def _look(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            with self._lock:
                records, idle = tuple(self._records), time.monotonic() - self._last_step_at
            self._raise(records, Moment(idle, self._free()))

    def _free(self) -> int | None:
        try:
            return shutil.disk_usage(self._path.parent).free
        except OSError:
            return None

    def _raise(self, records: Sequence[StepRecord], moment: Moment) -> None:
        for alert in find_alerts(records, moment, self._guard):
            with self._lock:
                if alert.kind in self._sent:
                    continue
                self._sent.add(alert.kind)
                try:
                    with self._path.open("a", encoding="utf-8") as file:
                        file.write(_line(alert))
                except OSError:  # a full disk is one of the things to report
                    pass
            self._tell(alert)
