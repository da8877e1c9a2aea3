"""The `raylign` command. Heavy packages are imported by the command that needs them, so that help is immediate."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cluster.runtime_env import quiet_driver
from conf.errors import RaylignError, UserError

app = typer.Typer(
    name="raylign",
    help="Feedback logs in, a better model out. `raylign train --help` lists every setting.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="Settings, as `raylign train --help` lists them.")
]
RunArgument = Annotated[str, typer.Argument(help="A run's folder, or its name under --run-root.")]
RunRoot = Annotated[Path, typer.Option(help="Where runs are kept.")]


@app.command(add_help_option=False)
def train(
    overrides: Overrides = None,
    show_help: Annotated[bool, typer.Option("--help", help="Show every setting and exit.")] = False,
) -> None:
    """Train a model: +experiment=NAME or algorithm=NAME, and key=value settings."""
    if show_help:
        from trainer.commands.train_help import train_help

        typer.echo(train_help(overrides or []))
        return
    quiet_driver()
    from trainer.configuration import compose

    composed = compose(overrides or [])
    from trainer.main import train as run

    raise typer.Exit(run(composed))


@app.command()
def plan(overrides: Overrides = None) -> None:
    """Say what `train` with these settings would do: arithmetic, placement, every `auto`, what becomes of the data."""
    from trainer.commands.plan import plan as describe
    from trainer.configuration import compose

    for part in describe(compose(overrides or []), colour=sys.stdout.isatty()):
        typer.echo(part)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    run_root: RunRoot = Path("runs"),
) -> None:
    """Watch a real small language model learn a simulated user's taste, on two CPU cores, in minutes."""
    quiet_driver()
    from trainer.demo import run

    raise typer.Exit(run(seed=seed, run_root=run_root))


@app.command()
def report(run: RunArgument, run_root: RunRoot = Path("runs")) -> None:
    """Write the run's self-contained report.html and print its path."""
    folder = _run_folder(run, run_root)
    from trainer.report import write_report

    typer.echo(str(write_report(folder)))


@app.command()
def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
    step: Annotated[int | None, typer.Option(help="The step; the last one when not given.")] = None,
    run_root: RunRoot = Path("runs"),
) -> None:
    """Copy a run's Hugging Face export (weights, config, tokenizer, chat template) to a folder of your own."""
    folder = _run_folder(run, run_root)
    from trainer.commands.export import export as copy

    typer.echo(str(copy(folder, to, step)))


@app.command()
def submit(
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="The cluster's job server, http://host:8265; else RAY_API_SERVER_ADDRESS.")
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="The folder sent along; it holds the code and small data.")] = Path(
        "."
    ),
    wait: Annotated[bool, typer.Option(help="Follow the job's log and end with its exit.")] = True,
) -> None:
    """Run `train` with these settings as a job on a running Ray cluster."""
    from cluster.submit import submit as send

    raise typer.Exit(send(overrides or [], address=address, working_dir=working_dir, wait=wait))


@app.command()
def doctor(
    run_root: RunRoot = Path("runs"),
    address: Annotated[str | None, typer.Option(help="A Ray cluster to look for, host:port or auto.")] = None,
) -> None:
    """Look for what would keep a run from working here: versions, compiler, shared memory, Ray, GPUs, write access."""
    from trainer.commands.doctor import examine

    findings = examine(run_root, address)
    for finding in findings:
        typer.echo(str(finding))
    raise typer.Exit(UserError.exit_code if any(finding.fatal for finding in findings) else 0)


def main() -> None:
    """Entry point: runs a command and ends the process with the exit code of design, telling causes in sentences."""
    sys.exit(run_command(app))


def run_command(command: Callable[[], object]) -> int:
    """The exit code of `command`. A mistake of the user's, and a run that ended badly, are told without a traceback."""
    try:
        command()
    except RaylignError as error:
        for problem in error.problems:
            typer.echo(problem, err=True)
        return error.exit_code
    except SystemExit as ended:  # how typer ends: help, a usage error it has told, or a command's own exit code
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def _run_folder(run: str, run_root: Path) -> Path:
    """The folder a person means. Raises UserError when there is none."""
    for folder in (Path(run).expanduser(), run_root.expanduser() / run):
        if (folder / "resolved.yaml").is_file() or (folder / "metrics.jsonl").is_file():
            return folder
    raise UserError(f"{run}: there is no such run, neither at that path nor in {run_root}/.")


if __name__ == "__main__":
    main()
