"""The `raylign feedback` commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from raylign.conf.errors import UserError

if TYPE_CHECKING:
    from raylign.app.commands.judge_open import Who
    from raylign.feedback.ai_votes import Redact
    from raylign.feedback.source import Source
    from rich.console import Console

feedback_app = typer.Typer(
    help="Feedback logs to training data: look at logs, build data sets from them, browse them, forget people.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

LogFormat = Annotated[str | None, typer.Option("--format", help="The format, when it should not be guessed.")]
Mapping = Annotated[Path | None, typer.Option(help="A mapping file that says how to read columns of your own.")]
Companion = Annotated[Path | None, typer.Option(help="The second file of formats that keep answers elsewhere.")]
Url = Annotated[str, typer.Option(help="An endpoint of OpenAI's form; without it our own engine answers.")]
TokenEnv = Annotated[str, typer.Option(help="The environment variable that holds the endpoint's token.")]
MaxConcurrent = Annotated[int, typer.Option(min=1, help="Most calls of the endpoint at a time.")]
RunRoot = Annotated[Path, typer.Option(help="Where runs are kept.")]


@feedback_app.command("inspect")
def feedback_inspect(
    logs: Annotated[
        list[str], typer.Argument(metavar="LOG... [key=value ...]", help="Logs, and settings; - is standard input.")
    ],
    log_format: LogFormat = None,
    mapping: Mapping = None,
    companion: Companion = None,
) -> None:
    """Describe logs: format, signals, fields of the events, broken rows. Writes nothing."""
    from raylign.app.commands.feedback import run_inspect

    source = _source([Path(g) for g in logs if not _is_setting(g)], log_format, mapping, companion, logs)
    run_inspect(source, _console())


@feedback_app.command("build", add_help_option=False)
def feedback_build(
    logs: Annotated[
        list[str] | None, typer.Argument(metavar="LOG... [key=value ...]", help="Logs, and settings.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write; it must be new or empty.")] = None,
    log_format: LogFormat = None,
    mapping: Mapping = None,
    companion: Companion = None,
    show_help: Annotated[bool, typer.Option("--help", help="Show every setting and exit.")] = False,
) -> None:
    """Build SFT, preference and KTO data from logs, with a data card and a report."""
    if show_help:
        from raylign.app.commands.feedback_help import build_help

        typer.echo(build_help())
        return
    from raylign.app.commands.feedback import run_build

    given = logs or []
    source = _source([Path(g) for g in given if not _is_setting(g)], log_format, mapping, companion, given)
    if out is None:
        raise UserError("--out is missing: name the folder to write, as in --out data/feedback.")
    run_build(source, out.expanduser(), _console())


@feedback_app.command("forget")
def feedback_forget(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a build.")],
    user: Annotated[list[str] | None, typer.Option(help="A user's id as the logs have it, or its hash.")] = None,
    event: Annotated[list[str] | None, typer.Option(help="An event's id.")] = None,
    log: Annotated[list[Path] | None, typer.Option(help="Where a log is now, if it has moved; all of them.")] = None,
    companion: Companion = None,
    run_root: Annotated[
        list[Path] | None, typer.Option(help="Where runs are kept; may be given several times.")
    ] = None,
    registry: Annotated[Path, typer.Option(help="Where aliases are kept.")] = Path("registry"),
) -> None:
    """Rebuild a folder without a person's events, or without an event, for good; list the models trained on them."""
    from raylign.app.commands.feedback import run_forget

    logs = [path.expanduser() for path in log or []]
    run_forget(
        folder.expanduser(), user or [], event or [], _console(), logs=logs, companion=companion,
        run_roots=run_root or [Path("runs")], registry=registry.expanduser(),
    )  # fmt: skip


@feedback_app.command("judge")
def feedback_judge(  # noqa: PLR0913 - one argument an option
    logs: Annotated[
        list[str], typer.Argument(metavar="LOG... [key=value ...]", help="Logs with two answers side by side.")
    ],
    constitution: Annotated[Path, typer.Option(help="The principles that decide: a text file, one a line.")],
    model: Annotated[str, typer.Option(help="Who judges: a run or a model folder, or with --url its name there.")],
    out: Annotated[Path, typer.Option(help="The log of events to write; replies are kept beside it.")],
    url: Url = "",
    token_env: TokenEnv = "",
    max_calls: Annotated[int, typer.Option(min=0, help="Most new calls, two a pair; 0: no bound.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 256,
    max_concurrent: MaxConcurrent = 8,
    deadline: Annotated[float, typer.Option(min=1.0, help="Seconds that the replies to 250 pairs may take.")] = 7200.0,
    run_root: RunRoot = Path("runs"),
    log_format: LogFormat = None,
    mapping: Mapping = None,
    companion: Companion = None,
) -> None:
    """Let a model choose between the answers of a log by a constitution, each pair both ways round."""
    from raylign.app.commands.feedback_judge import judge_pairs, judged_lines, require_choices

    source = _source([Path(g) for g in logs if not _is_setting(g)], log_format, mapping, companion, logs)
    who = _who(model, url, token_env, max_new_tokens, max_concurrent, deadline, run_root)
    found = judge_pairs(source, constitution, out.expanduser(), who, max_calls=max_calls, tell=_tell)
    typer.echo("\n".join(judged_lines(found, out)))
    require_choices(found, out)


@feedback_app.command("revise")
def feedback_revise(  # noqa: PLR0913 - one argument an option
    logs: Annotated[list[str], typer.Argument(metavar="LOG... [key=value ...]", help="Logs with judged answers.")],
    constitution: Annotated[Path, typer.Option(help="The principles that decide: a text file, one a line.")],
    model: Annotated[str, typer.Option(help="Who revises: a run or a model folder, or with --url its name there.")],
    out: Annotated[Path, typer.Option(help="The log of events to write; replies are kept beside it.")],
    everything: Annotated[bool, typer.Option("--all", help="Every judged answer, not only disliked ones.")] = False,
    url: Url = "",
    token_env: TokenEnv = "",
    max_calls: Annotated[int, typer.Option(min=0, help="Most new calls, three an answer; 0: no bound.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 1024,
    max_concurrent: MaxConcurrent = 8,
    deadline: Annotated[float, typer.Option(min=1.0, help="Seconds that 250 answers may take.")] = 7200.0,
    run_root: RunRoot = Path("runs"),
    log_format: LogFormat = None,
    mapping: Mapping = None,
    companion: Companion = None,
) -> None:
    """Let a model revise disliked answers by a constitution; revisions that it prefers become corrections."""
    from raylign.app.commands.feedback_revise import require_revisions, revise_answers, revised_lines

    source = _source([Path(g) for g in logs if not _is_setting(g)], log_format, mapping, companion, logs)
    who = _who(model, url, token_env, max_new_tokens, max_concurrent, deadline, run_root)
    found = revise_answers(
        source, constitution, out.expanduser(), who, everything=everything, max_calls=max_calls, tell=_tell
    )
    typer.echo("\n".join(revised_lines(found, out)))
    require_revisions(found, out)


@feedback_app.command("prompts")
def feedback_prompts(  # noqa: PLR0913 - one argument an option
    seeds: Annotated[
        list[str],
        typer.Argument(
            metavar="SEEDS [privacy.key=value ...]", help="Rows with a prompt (JSONL, parquet, a folder), and settings."
        ),
    ],
    model: Annotated[str, typer.Option(help="Who writes: a run or a model folder, or with --url its name there.")],
    out: Annotated[Path, typer.Option(help="The file of prompts to write; replies are kept beside it.")],
    count: Annotated[int, typer.Option(min=1, help="New prompts that are wanted.")] = 500,
    max_calls: Annotated[int, typer.Option(min=1, help="Most requests, those answered before included.")] = 500,
    benchmark: Annotated[
        list[str] | None, typer.Option(help="A file (.txt, .jsonl) whose texts no prompt may overlap with.")
    ] = None,
    near: Annotated[float, typer.Option(min=0.0, max=1.0, help="Similarity from which two prompts are one.")] = 0.6,
    seed: Annotated[int, typer.Option(help="Which seeds a request shows follows from it.")] = 0,
    url: Url = "",
    token_env: TokenEnv = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 512,
    max_concurrent: MaxConcurrent = 8,
    deadline: Annotated[float, typer.Option(min=1.0, help="Seconds that 50 requests may take.")] = 7200.0,
    run_root: RunRoot = Path("runs"),
) -> None:
    """Let a model write more prompts of the kind of some seeds; near repeats and benchmarks' texts are left out."""
    from raylign.app.commands.feedback_prompts import PromptSettings, make_prompts, prompts_lines, require_prompts

    who = _who(model, url, token_env, max_new_tokens, max_concurrent, deadline, run_root)
    rows = _one_file([text for text in seeds if not _is_setting(text)], "SEEDS")
    settings = PromptSettings(rows, out.expanduser(), count, max_calls, benchmark or [], near, seed=seed)
    found = make_prompts(settings, who, _shown_by(seeds), _tell)
    typer.echo("\n".join(prompts_lines(found, out)))
    require_prompts(found, out)


@feedback_app.command("answers")
def feedback_answers(  # noqa: PLR0913 - one argument an option
    prompts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPTS [privacy.key=value ...]", help="Rows with a prompt to be answered, and settings."
        ),
    ],
    seeds: Annotated[str, typer.Option(help="Rows with a prompt and an answer that was liked, as a build's sft has.")],
    constitution: Annotated[Path, typer.Option(help="The principles of a good answer: a text file, one a line.")],
    model: Annotated[str, typer.Option(help="Who writes: a run or a model folder, or with --url its name there.")],
    out: Annotated[Path, typer.Option(help="The log of events to write; replies are kept beside it.")],
    max_calls: Annotated[int, typer.Option(min=0, help="Most new calls, two a prompt; 0: no bound.")] = 0,
    benchmark: Annotated[
        list[str] | None, typer.Option(help="A file (.txt, .jsonl) whose texts nothing may overlap with.")
    ] = None,
    near: Annotated[float, typer.Option(min=0.0, max=1.0, help="Similarity from which two texts are one.")] = 0.6,
    seed: Annotated[int, typer.Option(help="Which seeds a request shows follows from it.")] = 0,
    url: Url = "",
    token_env: TokenEnv = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 1024,
    max_concurrent: MaxConcurrent = 8,
    deadline: Annotated[
        float, typer.Option(min=1.0, help="Seconds that the replies to 250 prompts may take.")
    ] = 7200.0,
    run_root: RunRoot = Path("runs"),
) -> None:
    """Let a model answer prompts in the manner of seeds and check what it wrote; the answers become thumbs."""
    from raylign.app.commands.feedback_answers import AnswerSettings, answer_prompts, answered_lines, require_answers

    who = _who(model, url, token_env, max_new_tokens, max_concurrent, deadline, run_root)
    rows = _one_file([text for text in prompts if not _is_setting(text)], "PROMPTS")
    settings = AnswerSettings(rows, seeds, constitution, out.expanduser(), max_calls, benchmark or [], near, seed=seed)
    found = answer_prompts(settings, who, _shown_by(prompts), _tell)
    typer.echo("\n".join(answered_lines(found, out)))
    require_answers(found, out)


@feedback_app.command("corrections")
def feedback_corrections(  # noqa: PLR0913 - one argument an option
    model: Annotated[str, typer.Option(help="Who judges: a run or a model folder, or with --url its name there.")],
    out: Annotated[Path, typer.Option(help="The file of judged turns to write; replies are kept beside it.")],
    logs: Annotated[
        list[str] | None, typer.Argument(metavar="[LOG... key=value ...]", help="Logs; none: only the labelled turns.")
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="Turns that are labelled, to measure the model on; 76 are shipped.")
    ] = None,
    train: Annotated[
        str, typer.Option(help="Labelled turns to fit a head on the model's states to, or shipped; nothing is asked.")
    ] = "",
    url: Url = "",
    token_env: TokenEnv = "",
    max_calls: Annotated[int, typer.Option(min=0, help="Most new calls about the logs' turns; 0: no bound.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 8,
    max_concurrent: MaxConcurrent = 8,
    deadline: Annotated[float, typer.Option(min=1.0, help="Seconds that 1,000 turns may take.")] = 7200.0,
    run_root: RunRoot = Path("runs"),
    log_format: LogFormat = None,
    mapping: Mapping = None,
    companion: Companion = None,
) -> None:
    """Let a model tell which users' turns correct the answer before them, and measure it against the rules."""
    from raylign.app.commands.feedback_corrections import (
        find_corrections_by_head,
        find_corrections_by_model,
        found_lines,
    )

    given = logs or []
    source = _source([Path(g) for g in given if not _is_setting(g)], log_format, mapping, companion, given)
    who = _who(model, url, token_env, max_new_tokens, max_concurrent, deadline, run_root)
    if train:
        found = find_corrections_by_head(source, out.expanduser(), who, train, _tell, labelled=labelled)
    else:
        found = find_corrections_by_model(source, out.expanduser(), who, _tell, labelled=labelled, max_calls=max_calls)
    typer.echo("\n".join(found_lines(found, out)))


@feedback_app.command("browse")
def feedback_browse(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a build.")],
    port: Annotated[int, typer.Option(help="Where to listen on 127.0.0.1; 0 is any free port.")] = 0,
    reviews: Annotated[Path | None, typer.Option(help="Where marks are kept; DIR.reviews.jsonl unless named.")] = None,
) -> None:
    """Look at a build's events and rows in a web browser on this machine, and mark those that are wrong."""
    from raylign.app.commands.feedback_browse import run_browse

    run_browse(folder.expanduser(), _console(), port=port, reviews=reviews.expanduser() if reviews else None)


def _who(
    model: str, url: str, token_env: str, max_new_tokens: int, max_concurrent: int, deadline_s: float, run_root: Path
) -> Who:
    """Who is asked, from the options that every command which asks a model has."""
    from raylign.app.commands.judge_open import Who

    return Who(
        model=model, url=url, token_env=token_env, max_new_tokens=max_new_tokens, max_concurrent=max_concurrent,
        deadline_s=deadline_s, run_root=run_root,
    )  # fmt: skip


def _tell(said: str) -> None:
    typer.echo(said, err=True)


def _shown_by(given: Sequence[str]) -> Redact:
    """How texts are shown to a model, by the settings among the arguments."""
    from raylign.feedback.overrides import parse_settings
    from raylign.feedback.privacy import redactor_of

    return redactor_of(parse_settings([text for text in given if _is_setting(text)]).privacy).shown


def _one_file(named: Sequence[str], what: str) -> str:
    if len(named) != 1:
        raise UserError(f"{what}: expected one file or folder of rows, and {len(named)} are given.")
    return named[0]


def _source(
    logs: list[Path], log_format: str | None, mapping: Path | None, companion: Path | None, given: Sequence[str] = ()
) -> Source:
    from raylign.feedback.source import Source

    paths = tuple(path.expanduser() for path in logs)
    overrides = tuple(text for text in given if _is_setting(text))
    return Source(logs=paths, format=log_format, mapping=mapping, companion=companion, overrides=overrides)


def _is_setting(text: str) -> bool:
    """A file may have = in its name; then it is there."""
    return "=" in text and not Path(text).expanduser().exists()


def _console() -> Console:
    from rich.console import Console

    return Console()
