"""`raylign train`: opens the run folder and Ray, runs the loop of the algorithm's kind, and reports how it ended."""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import cast

from raylign.app.configuration import needs, roles
from raylign.app.launch.artifacts import read_artifacts, written_artifacts
from raylign.app.launch.callbacks import CallbackSink, load_callbacks
from raylign.app.launch.chain import MODEL_ROLES, came_from, chain_group, hub_models, named_runs, with_model_folders
from raylign.app.launch.checkpoints import find_resume, last_good_step
from raylign.app.launch.demand import role_requests, total_cpus, wanted_roles
from raylign.app.launch.environments import preloaded
from raylign.app.launch.fitting import of_rows, refuse_unfit
from raylign.app.launch.guard import Guard
from raylign.app.launch.inputs import run_inputs
from raylign.app.launch.machine import object_store_gb
from raylign.app.launch.offline import run_offline
from raylign.app.launch.online import run_online
from raylign.app.launch.refusals import refuse_impossible
from raylign.app.launch.remotes import refuse_unreachable
from raylign.app.launch.reward_trial import try_rewards
from raylign.app.launch.rows import TRAIN, OfflineRows, OnlineRows, read_offline, read_online
from raylign.app.launch.stage import ShownMetrics, Stage, WithCards, seed_process
from raylign.app.launch.suites import answered_before, with_suites
from raylign.app.launch.summary import offline_summary, online_summary
from raylign.app.launch.trained import trained_models, untried_models
from raylign.cluster.card_watch import CardWatch
from raylign.cluster.own_code import send_by_value
from raylign.cluster.runtime_env import in_ray_job
from raylign.cluster.session import Session, session
from raylign.cluster.shared_folder import SharedFolder
from raylign.cluster.stacks import StallWatch, dump_run
from raylign.conf.compose import Composed
from raylign.conf.derive import run_name
from raylign.conf.errors import RaylignError, RunFailed, Stopped, UserError
from raylign.conf.held_out import held_out_sets
from raylign.conf.own_code import modules_of
from raylign.conf.schema import Device, RunConfig
from raylign.data.chat_template import FAMILIES
from raylign.data.data_ledger import file_ledger
from raylign.records.metrics_log import MetricHistory, read_history
from raylign.records.other_sinks import require_sinks
from raylign.records.progress import RunProgress, figures_of, show_ending
from raylign.records.redaction import Redactor
from raylign.records.report import write_report
from raylign.records.run_folder import RunFolder
from raylign.records.suite_changes import read_changes, sentences
from raylign.records.summary import RunSummary
from raylign.records.tracking import WANDB, Tracker
from raylign.rollout.interfaces import EngineDead
from raylign.trainer.algorithms import algorithm_of
from raylign.trainer.algorithms.base import OfflineAlgorithm, OnlineAlgorithm, Role
from raylign.trainer.checkpoint import Checkpoint
from raylign.trainer.models.loading import read_head
from rich.console import Console

_DISK_REFUSES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


def train(composed: Composed, prepared: Path | None = None) -> int:
    """Train as composed, reported on stderr; the exit code. Raises RaylignError for what a user should read.

    `prepared`: see `run`.
    """
    run(composed, console=Console(stderr=True), prepared=prepared)
    return 0


def run(
    composed: Composed, *, console: Console, ray_session: Session | None = None, prepared: Path | None = None
) -> RunFolder:
    """As `train`; returns the closed run folder. `ray_session`: run in this one instead of opening one. `prepared`: the
    folder of the cluster to start, where fork servers of its roles are importing already."""

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    config = settled(composed.config, fetch=say)
    refuse(config)
    for notice in [*untried_models(config), *named_runs(composed.config)]:
        say(notice)
    redactor = Redactor.from_environ(os.environ)
    with (
        nullcontext(prepared) if ray_session or prepared else preloaded(config, roles(config)) as cluster_folder,
        RunFolder.open(config.run_root, config.name, resume=config.checkpoint.resume != "none") as folder,
        resume_hint_added(folder, composed),
    ):
        resumed = find_resume(config.checkpoint, folder)
        folder.write_config(config, composed.overrides, redactor)
        step, skipped = (resumed.state.step, resumed.skipped) if resumed else (None, ())
        manifest, changed = folder.write_manifest(
            sys.argv,
            run_inputs(config),
            redactor,
            resumed_step=step,
            skipped=skipped,
            came_from=came_from(composed.config),
            hub_models=hub_models(composed.config, config),
            data_ledger=file_ledger(config.data.train),
        )
        for notice in start_notices(step, skipped, changed):
            say(notice)
        rows = read_rows(config, manifest.today, folder.path / "quarantine.jsonl")
        refuse_unfit(config, of_rows(config, rows))
        for notice in rows_notices(config, rows):
            say(notice)
        before = answered_before(config, say)
        tracker = Tracker(folder, config, resumed_step=step, environ=os.environ, say=say, start=manifest.current)
        tracker.log_artifacts(read_artifacts(config, manifest.current))
        try:
            with open_session(config, ray_session, cluster_folder) as opened, closing(tracker):
                if exposed := opened.without_token(os.environ):
                    say(f"warning: {exposed}")
                open_run = OpenRun(config, rows, folder, opened, tracker, console, resumed, len(manifest.starts))
                summary = with_suites(open_run.run(), config, folder, before, say)
                folder.write_summary(summary)
                tracker.log_artifacts(written_artifacts(folder))
        except BaseException:
            tracker.finish(exit_code=1)  # where Ray did not start; else it is finished already
            for name, where in tracker.where.items():
                say(f"{name}: {where}")
            raise
        left = outputs(folder, write_report(folder.path), summary)
        show_ending(console, config.name, figures_of(summary), {**left, **tracked(tracker.where)})
        for sentence in sentences(read_changes(folder.suites) if before else ()):
            say(sentence)
        return folder


def refuse(config: RunConfig) -> None:
    """Raises RaylignError for what cannot be trained, before anything is started or written."""
    refuse_impossible(config, needs(config), to_run=True)
    if needs(config).reward:
        refuse_unreachable(config.reward)
    require_sinks(config.tracking.sinks)
    trained_models(config)


@contextmanager
def closing(tracker: Tracker) -> Iterator[None]:
    """Finish the tracker while Ray runs: W&B's process carries Ray's mark, and is ended with it otherwise."""
    try:
        yield
    except BaseException as error:
        tracker.finish(exit_code=error.exit_code if isinstance(error, RaylignError) else 1)
        raise
    tracker.finish(exit_code=0)


def start_notices(resumed_step: int | None, skipped: Sequence[str], changed: Sequence[str]) -> Iterator[str]:
    """What a person should know before the first step: where the run resumes, and which inputs have changed."""
    for sentence in skipped:
        yield f"warning: {sentence}; is the disk failing?"
    if resumed_step is not None:
        yield f"resuming from step {resumed_step}"
    if changed:
        yield f"warning: changed since this run's last start: {', '.join(changed)}"


def rows_notices(config: RunConfig, rows: OnlineRows | OfflineRows) -> Iterator[str]:
    """What is odd about the rows, and then, once that is said, about rewards that are tried on them."""
    yield from rows.notices
    if isinstance(rows, OnlineRows):
        reward = config.reward
        if reward.functions or reward.remote or reward.judges or reward.code:
            yield "trying the reward functions, servers, judges and sandboxes on made-up answers"
        yield from try_rewards(config, rows.train.prompts, rows.tokenizer)


def outputs(folder: RunFolder, report: Path, summary: RunSummary) -> dict[str, str]:
    """What a finished run left, by name, and what can be done with it."""
    export = folder.export / f"step-{summary.steps}"
    left = {"run": str(folder.path), "report": str(report)}
    if not export.is_dir():
        return left
    left["export"] = str(export)
    if (export / "config.json").is_file() and read_head(export) == "causal":
        left["serve"] = shlex.join(["raylign", "serve", str(export)])
        left["ask"] = shlex.join(["raylign", "chat", str(export)])
    return left


def tracked(where: Mapping[str, str]) -> dict[str, str]:
    """Where the numbers went, and how an offline W&B run is uploaded: all its folders, for each life has one."""
    return {
        name: shlex.join(["wandb", "sync", str(Path(place).parent)])
        if name == WANDB and not place.startswith("http")
        else place
        for name, place in where.items()
    }


@contextmanager
def open_session(config: RunConfig, given: Session | None, folder: Path | None) -> Iterator[Session]:
    """`given`, which its owner closes, or one of this run's own, with room for its roles, in `folder`."""
    if given is not None:
        yield given
        return
    algorithm = algorithm_of(config.algorithm)
    cluster = replace(config.cluster, object_store_gb=object_store_gb(config, algorithm.roles))
    cpus = total_cpus(role_requests(config, wanted_roles(config, algorithm.roles)))
    with session(cluster, num_cpus=cpus, prepared=folder) as own:
        yield own


@dataclass(frozen=True, slots=True)
class OpenRun:
    """One run between its folder being open and its summary."""

    config: RunConfig
    rows: OnlineRows | OfflineRows
    folder: RunFolder
    ray_session: Session
    tracker: Tracker
    console: Console
    resumed: Checkpoint | None
    run_generation: int

    def run(self) -> RunSummary:
        """Train to the end."""
        config, started = self.config, time.monotonic()
        algorithm = algorithm_of(config.algorithm)
        send_by_value(modules_of(type(algorithm).__module__))
        first = self.resumed.state.step if self.resumed else 0
        seed_process(config.seed)  # a resume replaces these streams by the saved ones
        with (
            RunProgress(
                self.console, total_steps=config.num_steps, first_step=first, gold=config.evaluation.gold
            ) as progress,
            stop_signal() as should_stop,
            StallWatch(config.cluster.stall_s, partial(self._stalled, progress)) as stall,
        ):
            shown = ShownMetrics(self.tracker, progress, stall.beat)
            patience = config.callback_timeout_s
            callbacks = load_callbacks(config.callbacks, patience)
            called = CallbackSink(shown, callbacks, self.folder.path, progress.notice, timeout_s=patience)
            guard = Guard(called, config.guard, progress.notice)
            self.tracker.on_alert(guard.sign)
            cards = CardWatch() if config.cluster.device is Device.cuda else None
            stage = Stage(
                config,
                self.folder,
                self.ray_session,
                self.tracker,
                progress,
                self.resumed,
                self.run_generation,
                SharedFolder.mark(self.folder.path),
                WithCards(guard, cards) if cards else guard,
                cards,
            )

            def stopping() -> bool:
                return should_stop() or bool(called.stopped_by or guard.stopped_by)

            if isinstance(self.rows, OnlineRows):
                online = cast("OnlineAlgorithm", algorithm)
                outcome = asyncio.run(run_online(stage, online, self.rows, stopping))
                return online_summary(config, outcome, self._history(), time.monotonic() - started)
            finished = asyncio.run(run_offline(stage, cast("OfflineAlgorithm", algorithm), self.rows, stopping))
            counts = {name: len(rows) for name, rows in self.rows.sets.items() if name != TRAIN}
            return offline_summary(config, finished, self._history(), time.monotonic() - started, counts)

    def _stalled(self, progress: RunProgress, silent_s: float) -> None:
        into = self.folder.path / "stacks" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        lines = dump_run(self.folder.logs, into)
        stopped = [line for line in lines if "(stopped)" in line or "(disk sleep)" in line]
        found = f"; {'; '.join(stopped)}" if stopped else ""
        progress.notice(f"no step has ended for {silent_s:.0f} s; where every process is: {into}{found}")

    def _history(self) -> MetricHistory:
        return read_history(self.folder.metrics)


def read_rows(config: RunConfig, today: date, quarantine: Path | None = None) -> OnlineRows | OfflineRows:
    """What the run trains on. Raises DataError or ModelLoadError."""
    algorithm = algorithm_of(config.algorithm)
    if Role.ROLLOUT in algorithm.roles:
        return read_online(config, today, quarantine)
    return read_offline(config, cast("OfflineAlgorithm", algorithm).needs, today, quarantine)


def settled(config: RunConfig, *, fetch: Callable[[str], None]) -> RunConfig:
    """`name=auto` becomes the algorithm and the time, a run named as a model its export, and every path absolute.

    A model of a hub is downloaded; `fetch` gets a sentence before that. Ranks on other nodes work in other directories,
    where a relative path is another one.
    """

    def home(path: str) -> str:
        given = os.path.expanduser(path)
        return os.path.abspath(given) if os.path.exists(given) else given  # else the name of a dataset

    name = run_name(config, datetime.now(UTC).astimezone())
    resolved = with_model_folders(config, fetch=fetch)
    resolved = replace(
        resolved,
        **{role: replace(getattr(resolved, role), model=home(getattr(resolved, role).model)) for role in MODEL_ROLES},
    )
    sets = {name: home(source) for name, source in held_out_sets(config.data.eval).items()}
    return replace(
        resolved,
        name=name,
        tracking=replace(config.tracking, group=chain_group(config, name)),
        run_root=os.path.abspath(os.path.expanduser(config.run_root)),
        data=replace(
            config.data,
            train=home(config.data.train),
            chat_template=given if (given := config.data.chat_template) in FAMILIES else home(given),
            eval=home(config.data.eval) if isinstance(config.data.eval, str) else sets,
        ),
        evaluation=replace(
            config.evaluation,
            suites=[home(named) if Path(named).suffix else named for named in config.evaluation.suites],
        ),
    )


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """SIGTERM and the first Ctrl-C ask for a stop at the next step boundary; a second Ctrl-C ends at once."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def resume_hint_added(folder: RunFolder, composed: Composed) -> Iterator[None]:
    """Add the last good step and the command that resumes to the last line of whatever ended the run.

    A dead engine becomes RunFailed; an interruption, and a disk that refuses what the run writes, Stopped.
    """
    try:
        yield
    except UserError:
        raise  # nothing was trained: there is nothing to resume
    except RaylignError as error:
        error.problems = (*error.problems[:-1], f"{error.problems[-1]}; {resume_hint(folder, composed)}")
        raise
    except EngineDead as error:
        raise RunFailed(f"rollout: {error}; {resume_hint(folder, composed)}") from error
    except OSError as error:
        if error.errno not in _DISK_REFUSES:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise Stopped(
            f"the disk refuses what the run writes: {error.strerror}{where}; {resume_hint(folder, composed)}"
        ) from error
    except KeyboardInterrupt as error:
        raise Stopped(f"interrupted; {resume_hint(folder, composed)}") from error


def resume_hint(folder: RunFolder, composed: Composed) -> str:
    """The last good step and the command that resumes from it."""
    step = last_good_step(folder)
    given = [o for o in composed.overrides if not o.startswith(("name=", "run_root="))]
    start = "submit" if in_ray_job() else "train"
    command = shlex.join(["raylign", start, *given, f"name={folder.path.name}", f"run_root={folder.path.parent}"])
    if step is None:
        return f"no step is saved; start again with another name, or remove {folder.path}"
    return f"last good step {step}; resume with: {command}"
