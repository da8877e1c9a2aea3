"""`raylign trace` and `raylign audit`: what one event did, and how good a reward model is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from raylign.cluster.runtime_env import compute_here
from raylign.conf.errors import UserError


def add_commands(app: typer.Typer, run_folder: Callable[[str, Path], Path]) -> None:
    """Add the commands to `app`. `run_folder`: the folder that a person means by a run's name or path."""

    @app.command()
    def trace(
        event: Annotated[
            str | None, typer.Argument(help="An event's id, as the training rows name it, or row:NUMBER.")
        ] = None,
        run: Annotated[
            str, typer.Option(help="The run that was trained on it: a folder, or a name in --run-root.")
        ] = "",
        run_root: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
        top: Annotated[
            int, typer.Option(help="Without an event: list so many most helpful and most harmful rows.", min=0)
        ] = 0,
        held_out: Annotated[
            str | None,
            typer.Option("--for", help="With --top: a held-out set of the run, or a file of rows, to do well on."),
        ] = None,
    ) -> None:
        """Trace what one feedback event did to the model: its rows, steps, gradient and most similar rows."""
        compute_here()
        from raylign.app.commands.trace import rank_rows, ranked_lines, trace_event
        from raylign.evals.trace_event import summary_lines

        if not run:
            raise UserError("--run: name the run that was trained on the event.")
        if bool(event) == bool(top):
            raise UserError("trace: name an event, or ask for a list with --top 10; not both.")
        folder = run_folder(run, run_root)
        if event:
            found, page = trace_event(folder, event, _tell)
            typer.echo("\n".join(summary_lines(found)))
            typer.echo(f"page: {page}")
        else:
            typer.echo("\n".join(ranked_lines(*rank_rows(folder, held_out, top, _tell))))

    app.command()(audit)
    app.command()(ensemble)


def audit(
    model: Annotated[str, typer.Argument(help="A reward model: a run's folder or name, or an exported model.")],
    pairs: Annotated[
        list[str] | None,
        typer.Option(help="A file of judged pairs; may be given several times. The run's held-out sets if not given."),
    ] = None,
    agreement: Annotated[
        float | None, typer.Option(help="Share of pairs on which two people agree, for the best that is possible.")
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(help="For the best-of-n curve: an online run, or a file with several answers a prompt."),
    ] = None,
    gold: Annotated[str | None, typer.Option(help="With a run's answers: the part of the reward that counts.")] = None,
    most: Annotated[int, typer.Option(help="Pairs that are read at most.", min=1)] = 2000,
    out: Annotated[Path, typer.Option(help="The page; the figures lie beside it as .json.")] = Path("audit.html"),
    run_root: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Audit a reward model: accuracy by slice, calibration, what raises its score without merit, best of n."""
    compute_here()
    from raylign.app.commands.audit import AuditSettings, audit_lines, write_page, write_record
    from raylign.app.commands.audit import audit as examine

    found = examine(model, AuditSettings(pairs or [], run_root, agreement, answers, gold, most), _tell)
    typer.echo("\n".join(audit_lines(found)))
    write_page(out, found)
    write_record(out.with_suffix(".json"), found)
    typer.echo(f"page: {out}")


def ensemble(
    model: Annotated[str, typer.Argument(help="A reward model: a run's folder or name, or an exported model.")],
    pairs: Annotated[
        list[str], typer.Option(help="A file of judged pairs with user_hash; may be given several times.")
    ],
    heads: Annotated[int, typer.Option(help="How many heads.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the people and anchors that are drawn.")] = 0,
    scale: Annotated[
        float | None,
        typer.Option(help="How far the heads differ where no pair says anything; (size + 1)^-1/2 if not given."),
    ] = None,
    most: Annotated[int, typer.Option(help="Pairs that are read at most.", min=1)] = 20000,
    run_root: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Fit more heads to a reward model, each for other people: a spread for reward.uncertainty_penalty."""
    compute_here()
    from raylign.app.commands.ensemble import EnsembleSettings, ensemble_lines, make_ensemble

    settings = EnsembleSettings(pairs, run_root, heads, seed, scale, most)
    typer.echo("\n".join(ensemble_lines(make_ensemble(model, settings, _tell))))


def _tell(line: str) -> None:
    typer.echo(line, err=True)
