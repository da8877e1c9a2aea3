"""The `raylign` command. Heavy packages are imported by the command that needs them, so that help is immediate."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from raylign.app.cli_evals import add_commands
from raylign.app.cli_feedback import feedback_app
from raylign.app.cli_loop import add_commands as add_loop
from raylign.app.cli_loop import submit_loop
from raylign.app.cli_trace import add_commands as add_trace
from raylign.app.commands.wandb_workspace import wandb_app
from raylign.cluster.collector import collector_paused
from raylign.cluster.runtime_env import compute_here, quiet_driver
from raylign.conf.errors import RaylignError, UserError
from raylign.records.redaction import Redactor

app = typer.Typer(
    name="raylign",
    help="Feedback logs in, a better model out. `raylign train --help` lists every setting.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raylign {metadata.version('raylign')}")
        raise typer.Exit(0)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Feedback logs in, a better model out. `raylign train --help` lists every setting."""


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="Settings, as `raylign train --help` lists them.")
]
ConfigFiles = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="FILE", help="A yaml file of settings; several are read one after the other."),
]
ConfigFolders = Annotated[
    list[str] | None,
    typer.Option("--config-dir", metavar="DIR", help="A folder of your own choices: DIR/experiment/NAME.yaml, ..."),
]
RunArgument = Annotated[str, typer.Argument(help="A run's folder, or its name under --run-root.")]
ModelArgument = Annotated[str, typer.Argument(help="A run's folder or name, or a folder with an exported model.")]
Retries = Annotated[
    int, typer.Option(min=0, help="Start the driver again when it dies; it resumes from its last checkpoint.")
]
RunRoot = Annotated[Path, typer.Option(help="Where runs are kept.")]


@app.command(add_help_option=False)
def train(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    config_dir: ConfigFolders = None,
    retries: Retries = 0,
    show_help: Annotated[bool, typer.Option("--help", help="Show every setting and exit.")] = False,
    multirun: Annotated[bool, typer.Option("-m", "--multirun", hidden=True)] = False,
) -> None:
    """Train a model: +experiment=NAME, algorithm=NAME or --config FILE, and key=value settings."""
    from raylign.app.commands.train_help import USAGE, train_help

    if show_help:
        typer.echo(train_help(overrides or []))
        return
    given = _arguments(overrides, config, config_dir)
    if multirun:
        from raylign.conf.overrides import SWEEP

        raise UserError(f"-m: there is no multirun; {SWEEP.format(key='seed')}.")
    if not given:
        raise UserError(USAGE.rstrip())
    quiet_driver()
    from raylign.app.configuration import compose

    composed = compose(given)
    if retries:
        from raylign.app.commands.retrying import keep_training, run_paths

        raise typer.Exit(keep_training(given, run_paths(composed), retries, lambda line: typer.echo(line, err=True)))
    with collector_paused():
        from raylign.app.configuration import roles
        from raylign.app.launch.environments import preloaded_early

    with preloaded_early(composed.config, roles(composed.config)) as prepared:  # they import beside this process
        with collector_paused():
            from raylign.app.main import train as run

        ended = run(composed, prepared)
    raise typer.Exit(ended)


@app.command()
def plan(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    config_dir: ConfigFolders = None,
    cluster: Annotated[
        str | None, typer.Option(help="Plan for a cluster that need not be there: NODESxCARDSxGB, as 2x8x80.")
    ] = None,
) -> None:
    """Print what `train` with these settings would do: batches, placement, every `auto`, how the data are read."""
    from raylign.app.commands.plan import plan as describe
    from raylign.app.commands.plan_memory import SuppliedCluster
    from raylign.app.configuration import compose

    given = SuppliedCluster.parse(cluster) if cluster else None
    composed = compose(_arguments(overrides, config, config_dir))
    for part in describe(composed, colour=sys.stdout.isatty(), cluster=given):
        typer.echo(part)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    run_root: RunRoot = Path("runs"),
) -> None:
    """Watch a real small language model learn a simulated user's taste, on two CPU cores, in minutes."""
    quiet_driver()
    with collector_paused():
        from raylign.app.demo import run

    raise typer.Exit(run(seed=seed, run_root=run_root))


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="A run's folder, or its name under --run-root; or several.")],
    run_root: RunRoot = Path("runs"),
    to: Annotated[Path, typer.Option(help="Of several runs: the page to write.")] = Path("comparison.html"),
) -> None:
    """Write the run's self-contained report.html and print its path; of several runs, a page that compares them."""
    folders = [_run_folder(run, run_root) for run in runs]
    from raylign.records.report import write_comparison, write_report

    typer.echo(str(write_report(folders[0]) if len(folders) == 1 else write_comparison(folders, to.expanduser())))


@app.command()
def ledger(run: RunArgument, run_root: RunRoot = Path("runs")) -> None:
    """Verify that every sample of an online run ended exactly once, and that its metrics and samples say the same."""
    folder = _run_folder(run, run_root)
    from raylign.app.commands.ledger import verify

    raise typer.Exit(verify(folder, typer.echo))


@app.command()
def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
    step: Annotated[int | None, typer.Option(help="The step; the last one when not given.")] = None,
    run_root: RunRoot = Path("runs"),
) -> None:
    """Copy a run's Hugging Face export (weights, config, tokenizer, chat template) to a folder of your own."""
    folder = _run_folder(run, run_root)
    from raylign.app.commands.export import export as copy

    typer.echo(str(copy(folder, to, step)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: ModelArgument,
    host: Annotated[str, typer.Option(help="Where to listen; with any but loopback set --api-key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    run_root: RunRoot = Path("runs"),
) -> None:
    """Serve an export with vLLM's OpenAI-compatible server; options not listed here are passed on to vLLM."""
    quiet_driver()
    from raylign.app.commands.serve import causal_export
    from raylign.app.commands.serve import serve as start

    start(causal_export(model, run_root), host, port, context.args)


@app.command("serve-reward")
def serve_reward(
    model: Annotated[str, typer.Argument(help="A reward model's run, or a folder with an exported one.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8001,
    no_token: Annotated[bool, typer.Option("--no-token", help="Everybody on this machine may send requests.")] = False,
    precision: Annotated[
        str | None, typer.Option(help="float32 or bfloat16; bfloat16 on a GPU and float32 on a CPU if not given.")
    ] = None,
    micro_batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens in one forward pass.")] = 8192,
    max_batch: Annotated[int, typer.Option(min=1, help="Most answers in one request.")] = 256,
    run_root: RunRoot = Path("runs"),
) -> None:
    """Serve a reward model over HTTP: OpenRLHF's /get_reward, vLLM's /classify, and /score for runs of Raylign."""
    quiet_driver()
    compute_here()
    from raylign.app.commands.serve_reward import listening, precision_of, scalar_export
    from raylign.app.commands.serve_reward import serve_reward as start

    where, chosen = listening(host, port, open_to_all=no_token), precision_of(precision)
    folder = scalar_export(model, run_root)
    start(folder, where, precision=chosen, micro_batch_tokens=micro_batch_tokens, max_batch=max_batch)


@app.command()
def chat(
    model: ModelArgument,
    question: Annotated[
        str | None, typer.Argument(help="Ask this and end; else converse, or read piped lines.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    run_root: RunRoot = Path("runs"),
) -> None:
    """Ask an export something in the terminal."""
    quiet_driver()
    from raylign.app.commands.chat import Answering, converse
    from raylign.app.commands.serve import causal_export

    answering = Answering.load(causal_export(model, run_root), max_new_tokens, temperature)
    converse(answering, question, sys.stdin, sys.stdout)


@app.command()
def watch(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="Print the view one time and end.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
    wait: Annotated[float, typer.Option(min=0.0, help="Seconds to wait for a run that is not there yet.")] = 0.0,
    until: Annotated[int, typer.Option(min=0, help="End after this step; 0: when the run is over.")] = 0,
    run_root: RunRoot = Path("runs"),
) -> None:
    """Follow a run in the terminal, from its folder's files: state, reward, KL, workers, phases, last answers."""
    from raylign.app.commands.watch import awaited
    from raylign.app.commands.watch import watch as follow
    from rich.console import Console

    try:
        folder = awaited(lambda: _run_folder(run, run_root), wait)
        follow(folder, Console(), once=once, every_s=every, until=until)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None  # the run goes on; only the watching ends


@app.command()
def scale(
    run: RunArgument,
    workers: Annotated[list[str], typer.Argument(metavar="ROLE=N...", help="rollout=N, reward=N or both.")],
    run_root: RunRoot = Path("runs"),
) -> None:
    """Change a running run's number of rollout workers or reward replicas; done after the current step."""
    folder = _run_folder(run, run_root)
    from raylign.records.scale_order import give_order, parse_order

    give_order(folder, parse_order(workers))
    typer.echo(
        f"{folder.name}: requested {' '.join(workers)}; rollout/workers and reward/replicas show when it is done"
    )


@app.command()
def submit(  # noqa: PLR0913 - one argument an option
    overrides: Overrides = None,
    config: ConfigFiles = None,
    config_dir: ConfigFolders = None,
    address: Annotated[
        str | None, typer.Option(help="The cluster's job server, http://host:8265; else RAY_API_SERVER_ADDRESS.")
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="The folder sent along; it holds the code and small data.")] = Path(
        "."
    ),
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An environment variable to send along; W&B's key goes without being named."),
    ] = None,
    retries: Retries = 0,
    loop: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Run `raylign loop --config FILE` instead of a training.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job's log and end with its exit code.")] = True,
) -> None:
    """Run `train` with these settings, or a night of a loop, as a job on a running Ray cluster."""
    given = _arguments(overrides, config, config_dir)
    if loop is not None:
        if given or retries:
            raise UserError("--loop: the loop's file has all settings; leave the others out.")
        raise typer.Exit(submit_loop(loop, address, working_dir, env or [], wait))
    if not given:
        raise UserError("Usage: raylign submit [OPTIONS] [key=value ...], with the settings of `raylign train`.")
    quiet_driver()
    from raylign.app.commands.submit import checked, login_notice, tokens
    from raylign.cluster.submit import forwarded
    from raylign.cluster.submit import submit as send

    checked_config = checked(given, working_dir)
    sent = forwarded([*(env or []), *tokens(checked_config, os.environ)], os.environ)
    if notice := login_notice(os.environ):
        typer.echo(notice)
    given = [*([f"--retries={retries}"] if retries else []), *given]
    raise typer.Exit(send(given, address=address, working_dir=working_dir, wait=wait, env_vars=sent, tell=typer.echo))


@app.command()
def doctor(
    run_root: RunRoot = Path("runs"),
    address: Annotated[str | None, typer.Option(help="A Ray cluster to look for, host:port or auto.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Check what this machine's GPUs compute, and how fast.")] = False,
    stage: Annotated[
        str, typer.Option(help="With --gpu: A kernels, B learner, C engine, D several cards; as A,B.")
    ] = "A,B,C,D",
    minutes: Annotated[float, typer.Option(help="With --gpu: the time of all stages together.")] = 10.0,
    out: Annotated[Path | None, typer.Option(help="With --gpu: also write the JSON lines here.")] = None,
) -> None:
    """Check whether runs can work on this machine: versions, compiler, shared memory, Ray, GPUs, write access."""
    if gpu:
        from raylign.app.gpu_check.run import main as check_gpu

        raise typer.Exit(
            check_gpu(["--stage", stage, "--minutes", str(minutes), *(["--out", str(out)] if out else [])])
        )
    from raylign.app.commands.doctor import examine

    findings = examine(run_root, address)
    for finding in findings:
        typer.echo(str(finding))
    raise typer.Exit(UserError.exit_code if any(finding.fatal for finding in findings) else 0)


add_commands(app)
add_loop(app)
app.add_typer(feedback_app, name="feedback")

app.add_typer(wandb_app, name="wandb")


add_trace(app, lambda run, run_root: _run_folder(run, run_root))


def main() -> None:
    """Entry point: runs a command and ends the process with its exit code; causes are printed as sentences."""
    sys.exit(run_command(app))


def run_command(command: Callable[[], object]) -> int:
    """The exit code of `command`. A user's mistake, and a run that failed, are reported without a traceback."""
    try:
        command()
    except RaylignError as error:
        shown = Redactor.from_environ(os.environ)  # a message may quote what a user's own code raised
        for problem in error.problems:
            typer.echo(shown.text(problem), err=True)
        return error.exit_code
    except SystemExit as ended:  # how typer ends: help, a usage error it has printed, or a command's own exit code
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def _arguments(settings: list[str] | None, files: list[str] | None, folders: list[str] | None) -> list[str]:
    """Everything that describes a run as one list, as run folders and submitted jobs keep it."""
    own = [f"--config-dir={folder}" for folder in folders or []] + [f"--config={file}" for file in files or []]
    return [*own, *(settings or [])]


def _run_folder(run: str, run_root: Path) -> Path:
    """The folder a person means. Raises UserError when there is none."""
    for folder in (Path(run).expanduser(), run_root.expanduser() / run):
        if (folder / "resolved.yaml").is_file() or (folder / "metrics.jsonl").is_file():
            return folder
    raise UserError(f"{run}: there is no such run, neither at that path nor in {run_root}/.")


if __name__ == "__main__":
    main()
