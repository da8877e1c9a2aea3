"""What a check is, and how one is run and reported: one JSON line each. Standard library and torch only."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

PASS, FAIL, NOT_RUN = "pass", "fail", "not run"


class NotRun(Exception):
    """A check that this machine cannot make; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a check found. `limit` None: the number is recorded and judged by nobody."""

    number: float
    unit: str
    limit: float | None = None
    at_least: bool = False  # the limit is the least that passes, else the most
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the number is within its limit; one that is no number is not."""
        if self.limit is None:
            return self.number == self.number
        return self.number >= self.limit if self.at_least else self.number <= self.limit


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to try on a device."""

    name: str
    run: Callable[[torch.device], Measured]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the checks ran."""

    card: str
    driver: str
    torch_version: str
    cuda: str
    commit: str

    @classmethod
    def here(cls, device: torch.device) -> Machine:
        """This one; what is not there is empty."""
        cuda = device.type == "cuda"
        return cls(
            card=torch.cuda.get_device_name(device) if cuda else "CPU",
            driver=_output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) if cuda else "",
            torch_version=torch.__version__,
            cuda=torch.version.cuda or "",
            commit=_output_of(["git", "-C", str(Path(__file__).resolve().parents[2]), "rev-parse", "--short", "HEAD"]),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """One JSON line."""

    stage: str
    name: str
    outcome: str  # pass, fail, not run
    why: str
    number: float | None
    limit: float | None
    unit: str
    seconds: float
    machine: Machine

    def line(self) -> str:
        """As JSON, on one line."""
        flat = asdict(self)
        return json.dumps(flat | flat.pop("machine"))


def run_checks(stage: str, checks: Sequence[Check], device: torch.device) -> Iterator[Outcome]:
    """Every check, whatever the others did."""
    machine = Machine.here(device)
    for check in checks:
        started = time.monotonic()
        outcome = _run(stage, check, device, machine)
        yield replace(outcome, seconds=round(time.monotonic() - started, 2))


def _run(stage: str, check: Check, device: torch.device, machine: Machine) -> Outcome:
    try:
        found = check.run(device)
    except NotRun as missing:
        return Outcome(stage, check.name, NOT_RUN, str(missing), None, None, "", 0.0, machine)
    except ImportError as missing:
        return Outcome(stage, check.name, NOT_RUN, f"cannot import: {missing}", None, None, "", 0.0, machine)
    except Exception as error:  # a check that breaks is a finding, and the next one is still worth making
        return Outcome(stage, check.name, FAIL, f"{type(error).__name__}: {error}"[:500], None, None, "", 0.0, machine)
    outcome = PASS if found.passed else FAIL
    return Outcome(stage, check.name, outcome, found.note, found.number, found.limit, found.unit, 0.0, machine)


def timed(device: torch.device, work: Callable[[], object], *, repeat: int = 5) -> float:
    """Median seconds of `work` on the device, after one run that warms it up."""
    work()
    seconds = []
    for _ in range(repeat):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]


def needs_cuda(device: torch.device) -> None:
    """Raises NotRun on another device: what is measured there says nothing."""
    if device.type != "cuda":
        raise NotRun("no CUDA device")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _output_of(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
