"""The commands that evaluate a model on suites, compare it with another, and let it replace that one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from raylign.conf.errors import UserError
from raylign.records.model_names import short_model

if TYPE_CHECKING:
    from raylign.app.commands.evaluate import EvalSettings

Suites = Annotated[
    list[str] | None,
    typer.Option(
        "--suite", metavar="SUITE", help="A shipped suite's name, or a yaml file; may be given several times."
    ),
]
Results = Annotated[Path, typer.Option(help="Where results are kept; what is there is not computed again.")]
RunRoot = Annotated[Path, typer.Option(help="Where runs are kept.")]
RegistryFolder = Annotated[Path, typer.Option("--registry", help="Where aliases are kept.")]
PrecisionName = Annotated[
    str | None, typer.Option(help="float32 or bfloat16; bfloat16 on a GPU and float32 on a CPU if not given.")
]
Deadline = Annotated[float, typer.Option(min=1.0, help="Seconds that one model may take for all suites.")]
Again = Annotated[bool, typer.Option("--again", help="Also compute what is in the results already.")]


def evaluate(  # noqa: PLR0913 - one argument an option
    model: Annotated[str, typer.Argument(help="A run's folder or name, or a folder with an exported model.")],
    suite: Suites = None,
    against: Annotated[str | None, typer.Option(help="Another model, run on the same suites.")] = None,
    results: Results = Path("eval-results"),
    run_root: RunRoot = Path("runs"),
    precision: PrecisionName = None,
    deadline: Deadline = 7200.0,
    again: Again = False,
    page: Annotated[Path | None, typer.Option(help="Write the table and the answers as a page, too.")] = None,
) -> None:
    """Evaluate a model on suites of prompts, with --against beside another model."""
    from raylign.app.commands.evaluate import evaluate
    from raylign.app.commands.evaluate_table import table
    from raylign.evals.slices import slice_lines
    from raylign.evals.suite_lines import suite_lines
    from raylign.evals.suites import shipped_names

    if not suite:
        raise UserError(f"--suite: name at least one; shipped are {', '.join(shipped_names())}.")
    settings = _settings(results, run_root, precision, deadline, again)
    found = evaluate(model, suite, settings, _tell)
    others = evaluate(against, suite, settings, _tell) if against else None
    lines, slices = suite_lines(found, others), slice_lines(found, others)
    typer.echo(table(lines, model, against, results, slices))
    if page is not None:
        from raylign.evals.result_pages import write_eval_page

        write_eval_page(page, lines, slices, found, short_model(model), short_model(against) if against else None)
        typer.echo(f"page: {page}")


def compare(  # noqa: PLR0913 - one argument an option
    models: Annotated[list[str], typer.Argument(help="Two to eight models: runs, or folders with exported models.")],
    prompts: Annotated[str, typer.Option(help="Rows with a prompt each, a suite's yaml file, or a shipped suite.")],
    rule: Annotated[
        list[str] | None,
        typer.Option(help="For rows: a rule by which an answer is better; may be given several times."),
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="For rows: a reward model by which an answer is better.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page; its figures are written beside it as JSON.")] = Path(
        "compare.html"
    ),
    results: Results = Path("eval-results"),
    run_root: RunRoot = Path("runs"),
    precision: PrecisionName = None,
    deadline: Deadline = 7200.0,
    again: Again = False,
) -> None:
    """Compare models on the same prompts: answers side by side, and how often each is preferred."""
    from raylign.app.commands.compare import Grading, compare_models
    from raylign.evals.compare_page import lines

    settings = _settings(results, run_root, precision, deadline, again)
    found = compare_models(models, prompts, Grading(rule or [], reward_model), settings, out, _tell)
    typer.echo("\n".join([*lines(found), f"page: {out}"]))


def gate(
    candidate: Annotated[str, typer.Argument(help="The model to be released.")],
    policy: Annotated[Path, typer.Option(help="The conditions, a yaml file.")],
    against: Annotated[str | None, typer.Option(help="The model it would replace: a model, or an alias.")] = None,
    results: Results = Path("eval-results"),
    run_root: RunRoot = Path("runs"),
    registry: RegistryFolder = Path("registry"),
    precision: PrecisionName = None,
    record: Annotated[Path, typer.Option(help="Where the decision is written, for `raylign promote`.")] = Path(
        "gate.json"
    ),
) -> None:
    """Decide whether a model may replace another. Exit code 0: pass, 1: fail, 3: not enough data."""
    from raylign.app.commands.gate import decide

    settings = _settings(results, run_root, precision)
    raise typer.Exit(decide(candidate, against, policy, settings, registry, record, _tell))


def promote(
    alias: Annotated[str, typer.Argument(help="The alias to point at the model, as production.")],
    candidate: Annotated[str | None, typer.Argument(help="The model; not with --rollback or --history.")] = None,
    record: Annotated[Path, typer.Option(help="The decision that `raylign gate` wrote.")] = Path("gate.json"),
    registry: RegistryFolder = Path("registry"),
    run_root: RunRoot = Path("runs"),
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the release before.")] = False,
    history: Annotated[bool, typer.Option("--history", help="List the alias's releases.")] = False,
    first: Annotated[
        bool, typer.Option("--first", help="The first release of an alias: there is no gate yet.")
    ] = False,
) -> None:
    """Point an alias to a model that has passed its gate, or roll back."""
    from raylign.app.commands.gate import promote as let_in
    from raylign.app.commands.gate import releases, roll_back

    if history:
        typer.echo(releases(registry, alias))
    elif rollback:
        typer.echo(roll_back(registry, alias))
    elif candidate is None:
        raise UserError("promote: name the model that the alias is to point at, or --rollback or --history.")
    else:
        typer.echo(let_in(registry, alias, candidate, run_root, None if first else record))


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command("eval")(evaluate)
    app.command()(compare)
    app.command()(gate)
    app.command()(promote)


def _settings(
    results: Path, run_root: Path, precision: str | None, deadline: float = 7200.0, again: bool = False
) -> EvalSettings:
    from raylign.app.commands.evaluate import EvalSettings
    from raylign.app.commands.serve_reward import precision_of

    return EvalSettings(results, run_root, precision_of(precision), deadline, again)
