"""`raylign wandb`: what is done once in a W&B project, and not by a run."""

from __future__ import annotations

import os
from typing import Annotated

import typer

wandb_app = typer.Typer(help="Weights & Biases: saved workspaces.", no_args_is_help=True, rich_markup_mode=None)


@wandb_app.callback()
def wandb_options() -> None:
    """Weights & Biases: saved workspaces."""


@wandb_app.command("workspace")
def wandb_workspace(
    project: Annotated[str, typer.Option(help="The W&B project.")] = "raylign",
    entity: Annotated[str, typer.Option(help="The team or user that owns it; else WANDB_ENTITY, else your own.")] = "",
) -> None:
    """Save a view with the headline panels pinned in a W&B project, and print its address."""
    from raylign.records.workspace import save_workspace

    typer.echo(save_workspace(project, entity, os.environ))
