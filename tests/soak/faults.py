"""What is done to a run: each kind of fault proves its victim before it strikes."""

from __future__ import annotations

import os
import random
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from raylign.records.journal import JournalError, read_batch
from raylign.records.run_folder import RunPaths

from tests.system.role_processes import role_process

KILLED = {
    "kill rollout": "rollout-{}", "kill policy rank 0": "policy-0", "kill policy rank 1": "policy-1",
    "kill critic": "critic-0", "kill reward": "reward-0", "kill assembler": "assembler-0",
}  # fmt: skip
STOPPED = {"stop rollout": "rollout-{}", "stop policy rank 1": "policy-1", "stop critic": "critic-0"}
DRIVER = ("kill driver", "terminate driver", "terminate driver and damage the newest checkpoint",
          "kill driver and tear the metrics", "kill driver and tear the ledger",
          "kill driver and damage the newest batch")  # fmt: skip
KINDS = (*KILLED, *STOPPED, *DRIVER)


def schedule(seed: int, num_faults: int) -> list[str]:
    """Kinds in a seeded order, all of them before any comes again."""
    draw, drawn = random.Random(seed), []
    while len(drawn) < num_faults:
        drawn += draw.sample(KINDS, len(KINDS))
    return drawn[:num_faults]


def strike(run: RunPaths, kind: str, draw: random.Random) -> int | None:
    """SIGKILL or SIGSTOP one role's process; its pid, or None while there is none to strike."""
    name = (KILLED | STOPPED)[kind]
    found = _rollouts(run) if "{}" in name else [name]
    if not found:
        return None
    pid = role_process(run, draw.choice(found))
    if pid is None or _state(pid) in ("Z", "T", ""):
        return None
    os.kill(pid, signal.SIGSTOP if kind in STOPPED else signal.SIGKILL)
    return pid


def kept_whole(run: RunPaths) -> Path:
    """Where batches are that were damaged: of a step that a checkpoint covers, nothing writes the batch anew."""
    return run.path.with_name("whole-batches")


def damage(run: RunPaths, kind: str, draw: random.Random) -> str:
    """Hurt a file while no process of the run lives; what was hurt."""
    if "metrics" in kind:
        return _torn(run.metrics, draw)
    if "ledger" in kind:
        return _torn(run.ledger, draw)
    if "batch" in kind:
        batches = sorted(run.journal.glob("step-*.batch"))
        if not batches:
            return "no batch to damage"
        kept_whole(run).mkdir(exist_ok=True)
        with suppress(JournalError):  # it may have been damaged before
            read_batch(run.journal, int(batches[-1].stem.removeprefix("step-")))
            shutil.copy(batches[-1], kept_whole(run))
        return _flipped(batches[-1], draw)
    saved = sorted(run.checkpoints.glob("step-*"))
    if len(saved) < 2:
        return "one checkpoint only: left alone"
    return _flipped(draw.choice(sorted(p for p in saved[-1].rglob("*") if p.is_file())), draw)


def _torn(path: Path, draw: random.Random) -> str:
    """A line that a power cut left half written."""
    with path.open("ab") as file:
        file.write(b'{"step": 99, "crc": "0'[: draw.randint(1, 20)])
    return path.name


def _flipped(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return str(path.name)


def _rollouts(run: RunPaths) -> list[str]:
    """Logs of workers that live."""
    return sorted(log.stem for log in run.logs.glob("rollout-*.log") if role_process(run, log.stem) is not None)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
