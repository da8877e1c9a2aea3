"""Online runs from a common start with held-out answers before and after: what the benchmarks of learning share.

A run that is finished in the folder is not run again, so a stopped measurement goes on. No command of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
from raylign.app.configuration import compose
from raylign.app.main import run as train
from raylign.cluster.session import Session
from raylign.evals.statistics import Figure, Range, difference, figure
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.records.summary import read_summary
from rich.console import Console
from rich.table import Table

CONFIDENCE = 0.95
SHARES = Range(0.0, 1.0)
COLOURS = ("#0f766e", "#d97706", "#7c3aed")
SHORT_SFT = (
    "+experiment=sft_tiny_cpu", "algorithm.rows_per_update=8", "policy.precision=bfloat16", "policy.num_ranks=1",
    "policy.threads_per_rank=2", "policy.micro_batch_tokens=2048", "policy.lora.rank=16", "policy.optim.lr=1e-3",
    "policy.optim.schedule=linear", "cluster.object_store_gb=1.0",
)  # fmt: skip
"""Settings of the training that makes the common start."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Learned:
    """One run."""

    task: str
    arm: str
    seed: int
    before: Figure  # share of held-out prompts that are answered right
    after: Figure
    change: Figure  # paired
    curve: list[float]  # mean reward of each step
    seconds: float
    beside: dict[str, list[float]] = field(default_factory=dict)  # other metrics of each step, by name


def write(rows: Iterator[dict[str, Any]], path: Path) -> Path:
    """As JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def finished(settings: Sequence[str], folder: Path, name: str, ray_session: Session) -> RunPaths:
    """The run of that name, now or from an earlier call."""
    paths = RunPaths(folder / name)
    if not paths.summary.exists():
        given = [*settings, f"run_root={folder}", f"name={name}", "tracking.wandb=disabled"]
        train(compose(given), console=Console(), ray_session=ray_session)
    return paths


def learned(task: str, arm: str, seed: int, paths: RunPaths, beside: Sequence[str] = ()) -> Learned:
    """The figures of a finished run, with the metrics that `beside` names."""
    rows = [json.loads(line) for line in paths.answers.read_text(encoding="utf-8").split("\n") if line]
    before, after = (
        np.array([row[f"reward_{when}"] for row in rows], dtype=np.float64) for when in ("before", "after")
    )
    steps = [row.values for row in read_history(paths.metrics).rows if row.step > 0]
    return Learned(
        task, arm, seed,
        before=_known(figure(before, SHARES, confidence=CONFIDENCE)),
        after=_known(figure(after, SHARES, confidence=CONFIDENCE)),
        change=_known(difference(after, before, SHARES, confidence=CONFIDENCE)),
        curve=[_known(values["reward/mean"]) for values in steps],
        seconds=read_summary(paths.summary).seconds_total,
        beside={name: [_known(values[name]) for values in steps] for name in beside},
    )  # fmt: skip


def over_seeds(runs: Sequence[Learned]) -> Figure:
    """The mean change of runs that differ in their seed; Student's interval."""
    changes = np.array([run.change.value for run in runs], dtype=np.float64)
    return _known(figure(changes, Range(-1.0, 1.0), confidence=CONFIDENCE))


def table_of(runs: Sequence[Learned]) -> Table:
    """A line a run, and one for the seeds of an arm together."""
    names = list(dict.fromkeys(name for run in runs for name in run.beside))
    ends = [f"{name}, first and last" for name in names]
    table = Table("task", "arm", "seed", "right before", "right after", "change", *ends, "seconds")
    for task, arm in dict.fromkeys((run.task, run.arm) for run in runs):
        seeds = [run for run in runs if (run.task, run.arm) == (task, arm)]
        for run in seeds:
            told = [run.beside.get(name, []) for name in names]
            shares = [_shown(found) for found in (run.before, run.after, run.change)]
            shown = [f"{values[0]:.2f} {values[-1]:.2f}" if values else "" for values in told]
            table.add_row(task, arm, str(run.seed), *shares, *shown, f"{run.seconds:.0f}")
        means = [f"{fmean(getattr(run, when).value for run in seeds):.3f}" for when in ("before", "after")]
        table.add_row(task, arm, "all", *means, _shown(over_seeds(seeds)), *("" for _ in names), "", end_section=True)
    return table


def report(runs: Iterable[Learned], data: Path | None, picture: Path | None) -> None:
    """After each run a table of all so far, and where a file is named its figures as JSON and its curves."""
    console, done = Console(), list[Learned]()
    for run in runs:
        done.append(run)
        console.print(table_of(done))
        if data:
            data.write_text(json.dumps([asdict(one) for one in done], indent=1) + "\n", encoding="utf-8")
        if picture:
            draw_curves(done, picture)


def draw_curves(runs: Sequence[Learned], path: Path) -> None:
    """A panel a task: the mean reward of each step, a line a seed, and the held-out share before and after."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "raylign", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot

    tasks, arms = (list(dict.fromkeys(names)) for names in zip(*((run.task, run.arm) for run in runs), strict=True))
    canvas, axes = pyplot.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 3.2), layout="constrained", squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for arm, colour in zip(arms, COLOURS, strict=False):
            for number, run in enumerate(run for run in runs if (run.task, run.arm) == (task, arm)):
                steps, label = range(1, len(run.curve) + 1), arm if number == 0 else None
                axis.plot(steps, run.curve, color=colour, lw=1, alpha=0.6, label=label)
                ends = [run.before.value, run.after.value]
                axis.plot([0, len(run.curve) + 1], ends, color=colour, marker="o", ms=4, ls="")
        axis.set_title(task, loc="left", fontsize=10)
        axis.set_xlabel("GRPO steps (dots: held-out)")
        axis.set_ylabel("share answered right")
        axis.set_ylim(-0.03, 1.03)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _shown(found: Figure) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _known(value: T | None) -> T:
    assert value is not None, "the run has not told it"
    return value
