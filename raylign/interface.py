"""What `import raylign` offers: the command line's `train` and `plan`, and readers of what a run leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylign.conf.errors import DataError, UserError

if TYPE_CHECKING:
    from raylign.conf.compose import Composed
    from raylign.records.metrics_log import MetricHistory
    from raylign.records.samples import SampleRow
    from raylign.records.summary import RunSummary


def compose(settings: Sequence[str]) -> Composed:
    """The run that `settings` describe: `key=value` texts, choices and `--config=FILE`, as on the command line.

    `composed.config` is the typed configuration. Raises ConfigError with every problem found.
    """
    from raylign.app.configuration import compose as composition

    return composition(settings)


def plan(run: Composed) -> str:
    """What `train` would do, in words: arithmetic, placement, every `auto`, the first row. Starts nothing.

    Raises ConfigError, DataError, ModelLoadError or ClusterError where training would.
    """
    from raylign.app.commands.plan import plan as parts

    return "\n".join(parts(run))


def train(run: Composed) -> Path:
    """Train, with progress on stderr, and return the run's folder. A run of the same name is resumed.

    Needs the main thread, for Ctrl-C is a request to save and stop. Raises RaylignError for what ends a run:
    ConfigError and DataError before anything starts, RunFailed, and Preempted after a stop whose state is saved.
    """
    from rich.console import Console

    from raylign.app.main import run as play

    return play(run, console=Console(stderr=True)).path


def load_samples(folder: str | Path, step: int | None = None) -> list[SampleRow]:
    """Every answer of a step of an online run, with reward, components and advantage; the newest step by default.

    Raises DataError when the run's folder has no samples of that step.
    """
    from raylign.records.run_folder import RunPaths
    from raylign.records.samples import read_samples

    paths = RunPaths(Path(folder).expanduser())
    files = sorted(paths.samples.glob("step-*.parquet"))
    if step is not None:
        files = [file for file in files if file == paths.samples_file(step)]
    if not files:
        what = "no samples" if step is None else f"no samples of step {step}"
        raise DataError(
            f"{folder}: {what} in {paths.samples}; offline runs have none, and tracking.samples_every thins."
        )
    return read_samples(files[-1])


def load_metrics(folder: str | Path) -> MetricHistory:
    """The metrics of every step of a run: `.series("reward/mean")` is a tuple of (step, value). Empty before the first.

    Raises UserError when there is no such folder.
    """
    from raylign.records.metrics_log import read_history
    from raylign.records.run_folder import RunPaths

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"{folder}: there is no such run folder.")
    return read_history(RunPaths(path).metrics)


def load_summary(folder: str | Path) -> RunSummary:
    """A finished run's summary. Raises UserError when there is none (yet)."""
    from raylign.records.run_folder import RunPaths
    from raylign.records.summary import read_summary

    path = RunPaths(Path(folder).expanduser()).summary
    if not path.is_file():
        raise UserError(f"{folder}: there is no {path.name}; the run is not finished, or this is no run folder.")
    return read_summary(path)
