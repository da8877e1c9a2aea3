"""A run in Weights & Biases. `wandb` is imported here and nowhere else, on the sink's own thread."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylign.conf.errors import Preempted, Stopped
from raylign.conf.schema import WandbMode
from raylign.records.alerts import Alert
from raylign.records.atomic import write_atomic
from raylign.records.glossary import groups, markdown
from raylign.records.sinks import SAMPLE_COLUMNS, Artifact, SinkTarget

if TYPE_CHECKING:
    import wandb

_log = logging.getLogger(__name__)

STEP_AXIS = "train/global_step"
FINISH_TIMEOUT_S = 30.0
_START_TIMEOUT_S = 20.0  # also how long a process may hang at its end on a server that never answers
_ALERT_QUIET_S = 3600.0
_GLOSSARY = "metrics.md"
_RESENT_STEPS = 200  # at most, after W&B's process has died: it writes and sends nothing for some seconds
_MAX_REOPENINGS = 3
REOPENED = "Weights & Biases: its process has died, as a stopped job's does (%s); the run is opened again"


class WandbSink:
    """See sinks.Sink. The run's id is the run folder's, so that a resumed run continues in the same W&B run."""

    def __init__(self, target: SinkTarget) -> None:
        self._target = target
        self._recent: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=_RESENT_STEPS)
        self._reopenings = 0
        self._artifacts_refused = False
        self._finished = False
        try:
            self._start()
        except OSError:  # where Ray did not start, its end takes W&B's process along
            _let_go()
            raise

    @property
    def where(self) -> str:
        """The run's page, or its offline folder."""
        address = None if self._run.offline else self._run.url  # asked offline, wandb would print a warning
        return address or str(Path(self._run.dir).parent)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One step on the axis of steps."""
        self._call(lambda: self._run.log({STEP_AXIS: step, **values}))
        self._recent.append((step, values))

    def samples(self, rows: Sequence[Sequence[object]]) -> None:
        """Add rows to the one growing table."""
        self._call(lambda: self._add_to_table(rows))

    def alert(self, alert: Alert) -> None:
        """As W&B's account settings send it: by e-mail or to Slack."""
        level = "ERROR" if alert.serious else "WARN"
        title = f"{self._run.name}: {alert.kind.value}"[:63]
        text = f"Step {alert.step}: {alert.text}"
        self._call(lambda: self._run.alert(title, text, level=level, wait_duration=_ALERT_QUIET_S))

    def artifact(self, artifact: Artifact) -> None:
        """A reference: W&B keeps the address and the digest, no content. After one that is refused none is tried: each
        would be waited for, and the steps behind it with it."""
        import wandb

        if self._artifacts_refused:
            return
        try:
            entry = wandb.Artifact(artifact.name, type=artifact.kind, metadata={"digest": artifact.digest})
            entry.add_reference(artifact.path.as_uri(), name=artifact.path.name, checksum=False)
            if artifact.output:
                self._call(lambda: self._run.log_artifact(entry, aliases=list(artifact.aliases)))
            elif not self._run.offline:
                self._call(lambda: self._run.use_artifact(entry))
        except (wandb.Error, ValueError) as error:  # a server may be without artifacts; the curves go on
            self._artifacts_refused = True
            _log.warning("Weights & Biases: no artifact is logged, %s was refused (%s)", artifact.name, error)

    def finish(self, exit_code: int) -> None:
        """Waits for the upload, at most FINISH_TIMEOUT_S. A run that can be resumed ends as preempted, not as failed.

        Not so in a sweep: W&B would give its id to the next agent, which has none of its folder.
        """
        self._call(lambda: self._end(exit_code))
        self._finished = True

    def close(self) -> None:
        """End wandb's own process now: it would outlive the run until Python exits, and Ray's end may kill it before.

        A run of the caller's own, where Raylign is used as a library, is left alone.
        """
        import wandb

        if not self._finished:
            with contextlib.suppress(wandb.Error, OSError):  # what made it fail has been reported
                self._run.finish(exit_code=1)
        if wandb.run is None or wandb.run is self._run:
            _let_go()

    def _start(self) -> None:
        self._run = _open(self._target)
        self._table: wandb.Table | None = None
        self._describe()

    def _call(self, call: Callable[[], object]) -> None:
        """Do `call`. Where W&B's process has died, the run is opened again first and its newest steps are sent again.

        `ray job stop` and Slurm signal that process together with the run, which has yet to save and to end in order.
        """
        import wandb

        while True:
            try:
                call()
                return
            except ConnectionError as error:
                if self._reopenings == _MAX_REOPENINGS or wandb.run not in (None, self._run):
                    raise
                self._reopenings += 1
                _log.warning(REOPENED, error)
            _let_go()
            self._start()
            for step, values in self._recent:
                self._run.log({STEP_AXIS: step, **values})

    def _add_to_table(self, rows: Sequence[Sequence[object]]) -> None:
        import wandb

        if self._table is None:
            self._table = wandb.Table(columns=list(SAMPLE_COLUMNS), log_mode="INCREMENTAL")
        for row in rows:
            self._table.add_data(*row)
        self._run.log({"samples": self._table})

    def _end(self, exit_code: int) -> None:
        if exit_code in (Stopped.exit_code, Preempted.exit_code) and not self._run.sweep_id:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)

    def _describe(self) -> None:
        """The axis of every metric group, and the glossary as a file of the run with its address in the config."""
        self._run.define_metric(STEP_AXIS, hidden=True)
        for group in groups():
            self._run.define_metric(f"{group}/*", step_metric=STEP_AXIS)
        folder = Path(self._run.dir)
        write_atomic(folder / _GLOSSARY, markdown())
        self._run.save(str(folder / _GLOSSARY), base_path=str(folder), policy="now")
        page = "" if self._run.offline else self._run.url
        self._run.config.update(
            {"metrics_explained": f"{page}/files/{_GLOSSARY}" if page else f"files/{_GLOSSARY}"}, allow_val_change=True
        )


def _let_go() -> None:
    """End wandb's own process, whatever is left of it: wandb would try again as Python exits, with a traceback."""
    import wandb

    with contextlib.suppress(OSError):  # it is gone already, which is what is wanted
        wandb.teardown()


def own_entity() -> str:
    """The account's default team or user. Asks the server; raises wandb's errors."""
    import wandb

    return str(wandb.Api().default_entity)


def _open(target: SinkTarget) -> wandb.Run:
    """The run; offline when the server cannot be reached."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # before the run's own settings hold, else the log-in is announced
    try:
        return _init(target, target.mode)
    except wandb.Error as error:
        if target.mode is not WandbMode.online:
            raise
        _log.warning("Weights & Biases cannot be reached (%s); writing its offline folder instead", error)
        return _init(target, WandbMode.offline)


def _init(target: SinkTarget, mode: WandbMode) -> wandb.Run:
    """Everything is said explicitly, so that no prompt and no console capture can happen.

    wandb's own description of the process (`x_disable_meta`) would send the command line, where a secret can be: the
    manifest's redacted one goes with the config instead. Of git, the commit and the remote's address without its
    password go, no patch and no source.
    """
    import wandb

    return wandb.init(
        entity=target.entity or None,
        project=target.project,
        name=target.name,
        id=target.run_id,
        group=target.group or None,
        job_type=target.job_type or None,
        tags=list(target.tags) or None,
        resume="allow" if mode is WandbMode.online else None,
        dir=str(target.folder),
        config=dict(target.config),
        settings=wandb.Settings(
            mode="online" if mode is WandbMode.online else "offline",
            console="off",
            silent=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=not target.system_metrics,
            init_timeout=_START_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
        ),
    )
