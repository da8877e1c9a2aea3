"""The `raylign loop` command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from raylign.cluster.collector import collector_paused
from raylign.cluster.runtime_env import compute_here, quiet_driver


def loop(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The loop's settings, a yaml file.")],
    anew: Annotated[
        bool, typer.Option("--anew", help="Leave a night that has not ended as it is, and begin another.")
    ] = False,
) -> None:
    """Build, train, evaluate, gate and promote on a growing log: one night a call, resumed where it was killed."""
    quiet_driver()
    compute_here()  # audits
    with collector_paused():
        from raylign.app.commands.loop import run_loop
    from rich.console import Console

    raise typer.Exit(run_loop(config.expanduser(), Console(), anew=anew))


def submit_loop(file: Path, address: str | None, working_dir: Path, env: Sequence[str], wait: bool) -> int:
    """A night of a loop as a Ray job; its exit code. `file`: relative to `working_dir`, which goes along."""
    quiet_driver()
    from raylign.app.commands.submit import checked_loop, login_notice
    from raylign.cluster.submit import forwarded, submit

    checked_loop(file, working_dir)
    sent = forwarded(list(env), os.environ)
    if notice := login_notice(os.environ):
        typer.echo(notice)
    return submit(
        [f"--config={file}"], address=address, working_dir=working_dir, wait=wait, env_vars=sent, tell=typer.echo,
        entrypoint=("python", "-m", "raylign", "loop"), resumed_by="",
    )  # fmt: skip


def add_commands(app: typer.Typer) -> None:
    """Add the command of this file to `app`."""
    app.command()(loop)
