"""How the default feedback build grows: time and peak memory at 10k, 100k and 1M events of 1.3 KB.

    python benchmarks/feedback_scale.py [--sizes 10000,100000,1000000] [--longer 2.5] [--json out.json]

Each build runs in a process of its own, so that its peak memory is its own. `--longer` makes answers so many times
longer (2.5: 1.3 KB an event; 1: 0.8 KB). Goal: 1M events of 1.3 KB in under 5 minutes and 4 GB on 2 cores, and linear
growth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

CHUNK = 20_000
GOAL_S, GOAL_GB = 300.0, 4.0
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Measured:
    """One size."""

    events: int
    log_mb: float
    seconds: float
    cpu_seconds: float  # of all cores: what is left of `seconds` on a busy machine
    peak_gb: float
    steps: dict[str, float]  # CPU seconds by step of the build
    peaks: dict[str, float]  # GB: the highest memory until the end of each step
    rows: int  # of all kinds
    growth: float = 0.0  # log(ratio of CPU time) / log(ratio of size) to the size before; 1 is linear


def write_log(path: Path, events: int, longer: float, seed: int = 0) -> None:
    """A product's log: mostly thumbs, some choices, ratings and corrections; repeats, near repeats, e-mail addresses.

    One user has twenty events on average, a conversation two; one question in ten was asked before in other words.
    """
    draw = random.Random(seed)
    ends = ("n", "rt", "ssel", "ment", "")
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "io", "ou") for c in ends]
    with path.open("w") as log:
        for start in range(0, events, CHUNK):
            lines = [
                json.dumps(event) for event in _events(draw, words, start, min(events, start + CHUNK), events, longer)
            ]
            log.write("\n".join(lines) + "\n")


def _events(
    draw: random.Random, words: list[str], first: int, last: int, total: int, longer: float
) -> Iterator[dict[str, object]]:
    shortest, longest = round(10 * longer), round(80 * longer)
    recent: list[str] = []
    for number in range(first, last):
        prompt = " ".join(draw.choices(words, k=draw.randint(6, 25)))
        kind = draw.choices(("thumb", "side_by_side", "rating", "correction"), (60, 25, 10, 5))[0]
        if recent and number % 10 == 0:
            prompt = f"{draw.choice(recent)} please"
        elif number % 50 == 1:
            prompt += f" write to someone{number}@example.com"
        recent = [*recent[-200:], prompt]
        turns = [{"role": "user", "content": prompt}]
        if number % 3 == 0:
            before = " ".join(draw.choices(words, k=12))
            turns = [{"role": "user", "content": before}, {"role": "assistant", "content": prompt[::-1]}, *turns]
        event: dict[str, object] = {
            "event_id": f"event-{number}",
            "kind": kind,
            "prompt": turns,
            "response_a": " ".join(draw.choices(words, k=draw.randint(shortest, longest))),
            "conversation_id": f"conversation-{number // 2}",
            "user_id": f"user-{draw.randrange(max(1, total // 20))}",
            "time": (START + timedelta(seconds=number)).isoformat(),
            "model_a": f"model-{number % 3}",
            "persona": f"persona-{number % 5}",
            "locale": "en-GB",
        }
        other = " ".join(draw.choices(words, k=draw.randint(shortest, longest)))
        if kind == "thumb":
            event["thumb"] = draw.choice((1, -1))
        elif kind == "rating":
            event["rating"] = draw.random()
        elif kind == "correction":
            event["corrected"] = other
        else:
            choice = draw.choices(("a", "b", "both_good", "both_bad"), (40, 40, 10, 10))[0]
            event |= {"response_b": other, "choice": choice, "shown_left": draw.choice("ab"), "model_b": "model-9"}
        yield event


def build_here(log: Path, out: Path) -> None:
    """The build, in the process that is measured; the figures go to stdout as JSON."""
    from raylign.feedback.build import Watch, build
    from raylign.feedback.source import Source

    begun, begun_cpu = time.perf_counter(), time.process_time()
    marks: list[tuple[str, float]] = []
    highest: list[float] = []  # until each step began

    def at_step(step: str) -> None:
        marks.append((step, time.process_time()))
        highest.append(_highest_gb())

    watch = Watch(on_step=at_step)
    result = build(Source(logs=(log,)), out, watch=watch)
    end, end_cpu = time.perf_counter(), time.process_time()
    ends = [at for _, at in marks[1:]] + [end_cpu]
    steps = {step: round(stop - at, 2) for (step, at), stop in zip(marks, ends, strict=True)}
    peak = _highest_gb()
    peaks = {step: round(high, 2) for (step, _), high in zip(marks, [*highest[1:], peak], strict=True)}
    rows = sum(file.rows for file in result.produced)
    figures = {
        "seconds": end - begun,
        "cpu_seconds": end_cpu - begun_cpu,
        "peak_gb": peak,
        "steps": steps,
        "peaks": peaks,
    }
    sys.stdout.write(json.dumps({**figures, "rows": rows}))


def _highest_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(events: int, folder: Path, longer: float) -> Measured:
    """Write a log, build it in a child, remove both."""
    log, out = folder / f"{events}.jsonl", folder / f"built-{events}"
    write_log(log, events, longer)
    command = [sys.executable, __file__, "--child", str(log), "--out", str(out)]
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3600, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode:
        sys.exit(f"the build of {events} events ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    size = log.stat().st_size / 1e6
    log.unlink()
    return Measured(events, size, **found)


def main() -> None:
    """Measure every size, print the table, say whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--longer", type=float, default=2.5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        build_here(given.child, given.out)
        return
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in map(int, given.sizes.split(",")):
            now = measure(size, Path(folder), given.longer)
            if measured:
                before = measured[-1]
                rate = math.log(now.cpu_seconds / before.cpu_seconds) / math.log(now.events / before.events)
                now = Measured(**{**asdict(now), "growth": round(rate, 2)})
            measured.append(now)
    table = Table(title="feedback build, default settings")
    for head in (
        "events",
        "log MB",
        "seconds",
        "CPU s",
        "us/event",
        "peak GB",
        "growth",
        "rows",
        "by step, peak so far",
    ):
        table.add_column(head, justify="right" if not head.startswith("by step") else "left")
    for m in measured:
        steps = ", ".join(f"{step} {seconds:.1f} s, {m.peaks[step]:.2f} GB" for step, seconds in m.steps.items())
        table.add_row(
            f"{m.events:,}", f"{m.log_mb:,.0f}", f"{m.seconds:.1f}", f"{m.cpu_seconds:.1f}",
            f"{m.cpu_seconds / m.events * 1e6:.0f}",
            f"{m.peak_gb:.2f}", f"{m.growth:.2f}" if m.growth else "", f"{m.rows:,}", steps,
        )  # fmt: skip
    console = Console(width=160)
    console.print(table)
    last = measured[-1]
    if last.events >= 1_000_000:
        met = last.seconds < GOAL_S and last.peak_gb < GOAL_GB
        console.print(f"goal ({GOAL_S:.0f} s, {GOAL_GB:.0f} GB at 1M): {'met' if met else 'missed'}")
    if given.json:
        given.json.write_text(json.dumps([asdict(m) for m in measured], indent=1) + "\n")


if __name__ == "__main__":
    main()
