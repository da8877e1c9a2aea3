"""What a run is doing, from its folder's files alone: for `raylign watch`, also of a run on another machine's disk."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from statistics import median

import yaml
from raylign.records.metrics_log import MetricHistory, read_history
from raylign.records.progress import duration, step_line
from raylign.records.run_folder import RunPaths
from raylign.records.samples import read_samples

_PACE = 10  # newest steps whose median time the remaining time follows
_LOCKS = Path("/proc/locks")


class RunState(Enum):
    """Where a run stands."""

    STARTING = "starting: no step yet"
    TRAINING = "training"
    DONE = "finished"
    ENDED = "not running: it was stopped or it failed; the same command resumes it from its last checkpoint"
    UNKNOWN = "held by a process on another machine"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the newest step with samples."""

    prompt: str
    response: str
    reward: float | None  # None: the reward failed


@dataclass(frozen=True, slots=True)
class RunView:
    """One look at a run."""

    name: str
    algorithm: str
    gold: str
    state: RunState
    total_steps: int  # 0: not known beforehand
    history: MetricHistory
    answers: tuple[Answer, ...]
    alerts: tuple[str, ...]

    @property
    def step(self) -> int:
        """The newest step; 0 before the first."""
        return self.history.rows[-1].step if self.history.rows else 0

    def remaining_s(self) -> float | None:
        """Steps left at the pace of the newest steps; start-up is no step. None when it is not known."""
        paces = [seconds for _, seconds in self.history.series("time/step") if seconds is not None][-_PACE:]
        left = self.total_steps - self.step
        return median(paces) * left if paces and left > 0 and self.state is RunState.TRAINING else None


def look(folder: Path, *, answers: int = 3) -> RunView:
    """The run as its files are now; files that do not exist yet, and lines half written, count as nothing."""
    paths = RunPaths(folder)
    settings = _settings(paths.resolved)
    history = read_history(paths.metrics)
    total = _number(settings.get("num_steps"))
    step = history.rows[-1].step if history.rows else 0
    return RunView(
        name=folder.name,
        algorithm=str(_section(settings, "algorithm").get("name", "?")),
        gold=str(_section(settings, "evaluation").get("gold", "")),
        state=_state(paths, step),
        total_steps=total,
        history=history,
        answers=_answers(paths, answers),
        alerts=_alerts(paths.alerts),
    )


def step_text(view: RunView, index: int) -> str:
    """One step as one line: what stands in the log of a run that is not on a terminal."""
    row = view.history.rows[index]
    of = f"/{view.total_steps}" if view.total_steps else ""
    known = {name: value for name, value in row.values.items() if value is not None}
    return f"step {row.step}{of}  {step_line(known, view.gold)}".rstrip()


def screen(view: RunView) -> list[str]:
    """The whole view as lines of plain text: state, newest step, workers and queue, phases, answers, alerts."""
    lines = [f"{view.name}  {view.algorithm}  {view.state.value}"]
    if view.history.rows:
        left = view.remaining_s()
        lines.append(step_text(view, -1) + (f"  {duration(left)} left" if left is not None else ""))
        now = {name: value for name, value in view.history.rows[-1].values.items() if value is not None}
        lines += [f"  {text}" for text in (_roles(now), _phases(now)) if text]
        lines += [f"  {name:<15} {_trend(view.history, name)}" for name in _CURVES if view.history.series(name)]
    lines += [f"alert: {text}" for text in view.alerts[-3:]]
    for answer in view.answers:
        reward = "failed" if answer.reward is None else f"{answer.reward:.3f}"
        lines.append(f"[{reward}] {_short(answer.prompt, 60)} -> {_short(answer.response, 100)}")
    return lines


_CURVES = ("reward/mean", "policy/kl", "train/loss")
_BARS = "▁▂▃▄▅▆▇█"


def _trend(history: MetricHistory, name: str, width: int = 40) -> str:
    """The newest values as a row of bars, lowest to highest of those shown."""
    values = [value for _, value in history.series(name) if value is not None][-width:]
    if not values:
        return "no number"
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    bars = "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)
    return f"{bars}  {low:.4g} to {high:.4g}"


def _roles(now: Mapping[str, float]) -> str:
    shown = (("rollout/workers", "workers"), ("rollout/steps_ready", "steps waiting"), ("reward/failed", "failed"))
    return ", ".join(f"{now[name]:.0f} {label}" for name, label in shown if name in now)


def _phases(now: Mapping[str, float]) -> str:
    phases = {name.partition("/")[2]: v for name, v in now.items() if name.startswith("time/") and name != "time/step"}
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(phases.items(), key=lambda item: -item[1]))


def _state(paths: RunPaths, step: int) -> RunState:
    held = _held(paths.lock)
    if held is None:
        return RunState.DONE if paths.summary.is_file() else RunState.UNKNOWN
    if held:
        return RunState.TRAINING if step else RunState.STARTING
    return RunState.DONE if paths.summary.is_file() else RunState.ENDED


def _held(lock: Path) -> bool | None:
    """Whether a process holds the run, by the kernel's list, without touching the lock. None: it is elsewhere."""
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        inode, pid, host = lock.stat().st_ino, int(holder["pid"]), str(holder["host"])
        locks = _LOCKS.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is just being written, or the kernel's list cannot be read
    if host != socket.gethostname():
        return None
    return any(
        kind == "FLOCK" and int(owner) == pid and place.rpartition(":")[2] == str(inode)
        for kind, owner, place in _rows(locks)
    )


def _rows(locks: str) -> list[tuple[str, str, str]]:
    """Kind, owner and place of every lock that is held: `1: FLOCK  ADVISORY  WRITE 123 08:01:456 0 EOF`."""
    split = [line.split() for line in locks.splitlines()]
    return [(words[1], words[4], words[5]) for words in split if len(words) > 5 and words[1] != "->"]


def _answers(paths: RunPaths, count: int) -> tuple[Answer, ...]:
    files = sorted(paths.samples.glob("step-*.parquet"))
    if not files or count == 0:
        return ()
    rows = read_samples(files[-1])
    return tuple(Answer(row.prompt, row.response, row.reward) for row in rows[:: max(1, len(rows) // count)][:count])


def _alerts(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(str(json.loads(line)["text"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # half written
    return tuple(found)


def _settings(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        return {}
    read = yaml.safe_load(path.read_text(encoding="utf-8"))
    return read if isinstance(read, dict) else {}


def _section(settings: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _short(text: str, width: int) -> str:
    """One line of printable text."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 1]}…"
