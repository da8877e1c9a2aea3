"""Runs the stages, each in a child process with its own deadline, and prints one JSON line a check and a table.

    python -m raylign.app.gpu_check.run [--stage A,B,C,D] [--minutes 10] [--device cuda] [--only REGEX] [--out FILE]

The command of `raylign doctor --gpu`, without its imports: stages A and B run on a machine that has neither Ray, vLLM,
Hydra nor typer. scripts/gpu_check.py starts it where Raylign is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STAGES = {
    "A": ("kernels", "one card's kernels"),
    "B": ("learner", "a learner on one card"),
    "C": ("engine", "an engine on one card"),
    "D": ("nodes", "several cards"),
}
SHARES = {"A": 0.25, "B": 0.3, "C": 0.3, "D": 0.15}
"""Of the whole time, each stage's."""
FAIL, NOT_RUN = "fail", "not run"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when nothing failed; 1 otherwise, and when nothing could be run at all."""
    given = _parser().parse_args(arguments)
    if given.child:
        return _child(given.child, given.device, given.only)
    lines: list[dict[str, object]] = []
    for stage in given.stage.upper().split(","):
        if stage not in STAGES:
            sys.stderr.write(f"--stage {stage}: there is {', '.join(STAGES)}\n")
            return 2
        seconds = given.minutes * 60 * (SHARES[stage] if "," in given.stage else 1.0)
        lines += _stage(stage, given.device, seconds, given.out, given.only)
    sys.stdout.write(table(lines))
    outcomes = {line["outcome"] for line in lines}
    return 1 if FAIL in outcomes or outcomes <= {NOT_RUN} else 0


def table(lines: Sequence[dict[str, object]]) -> str:
    """What came out, for a reader."""
    rows = []
    for line in lines:
        number = line.get("number")
        value = f"{number:.4g} {line['unit']}" if isinstance(number, int | float) else ""
        limit = f"(limit {line['limit']:g})" if isinstance(line.get("limit"), int | float) else ""
        rows.append(
            f"{line['outcome']!s:<8} {line['stage']}  {line['name']!s:<52} {value} {limit} {line['why']}".rstrip()
        )
    counts = {o: sum(line["outcome"] == o for line in lines) for o in ("pass", FAIL, NOT_RUN)}
    return "\n".join([*rows, ", ".join(f"{n} {o}" for o, n in counts.items())]) + "\n"


def _child(stage: str, device: str, only: str) -> int:
    """In the child: import the stage, run it, print its lines."""
    import torch
    from raylign.app.gpu_check.harness import Check, Outcome, run_checks  # imports torch

    target = torch.device(device)
    try:
        if target.type == "cuda" and not torch.cuda.is_available():
            raise ImportError("torch sees no CUDA device")
        checks: list[Check] = list(importlib.import_module(f"raylign.app.gpu_check.{STAGES[stage][0]}").checks())
    except ImportError as missing:
        from raylign.app.gpu_check.harness import Machine

        nobody = Machine("", "", torch.__version__, torch.version.cuda or "", "")
        sys.stdout.write(
            Outcome(stage, STAGES[stage][1], NOT_RUN, str(missing), None, None, "", 0.0, nobody).line() + "\n"
        )
        return 0
    for outcome in run_checks(stage, [check for check in checks if re.search(only, check.name)], target):
        sys.stdout.write(outcome.line() + "\n")
        sys.stdout.flush()
    return 0


def _stage(stage: str, device: str, seconds: float, out: Path | None, only: str) -> list[dict[str, object]]:
    """The lines of one stage; what hangs or kills its process is a failure of the stage, by name."""
    command = [sys.executable, "-m", "raylign.app.gpu_check.run", "--child", stage, "--device", device]
    command += ["--only", only]
    deadline = time.monotonic() + seconds
    lines: list[dict[str, object]] = []
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as child,
        selectors.DefaultSelector() as s,
    ):
        assert child.stdout is not None
        s.register(child.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not s.select(left):
                child.kill()
                lines.append(_broken(stage, f"not done within its {seconds:.0f} s; {len(lines)} checks were"))
                break
            text = child.stdout.readline()
            if not text:
                if child.wait(timeout=10) != 0:
                    lines.append(_broken(stage, f"its process ended with {child.returncode} after {len(lines)} checks"))
                break
            if text.startswith("{"):
                lines.append(json.loads(text))
                _keep(text, out)
    return lines


def _broken(stage: str, why: str) -> dict[str, object]:
    return {"stage": stage, "name": STAGES[stage][1], "outcome": FAIL, "why": why, "number": None, "limit": None}


def _keep(line: str, out: Path | None) -> None:
    sys.stdout.write(line)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raylign doctor --gpu")
    parser.add_argument("--stage", default="A,B,C,D")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="checks whose name this regular expression finds")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
