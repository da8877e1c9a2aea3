"""The one writer of a run's numbers: metrics.jsonl always, Weights & Biases as fan-out. `wandb` lives only here.

Everything wandb does happens on one daemon thread behind a bounded queue, so a slow, failing or hanging W&B costs no
step: the first failure is one warning, after it the thread ends and metrics.jsonl goes on.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raylign.conf.errors import UserError
from raylign.conf.schema import TrackingConfig, WandbMode
from raylign.records.glossary import groups, markdown
from raylign.records.metrics_log import NON_FINITE, MetricRow, MetricsLog
from raylign.records.redaction import Redactor
from raylign.records.run_folder import RunPaths, plain
from raylign.records.samples import SampleRow

if TYPE_CHECKING:
    import wandb

_log = logging.getLogger(__name__)

STEP_AXIS = "train/global_step"
_QUEUE_SIZE = 10_000  # steps; past it W&B loses points, metrics.jsonl does not
_START_TIMEOUT_S = 20.0  # also how long a process may hang at its end on a server that never answers
_FINISH_TIMEOUT_S = 30.0
_SAMPLE_COLUMNS = (
    "step", "policy_version", "prompt", "response", "reward", "components", "advantage", "tokens", "finish_reason",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WandbTarget:
    """A W&B run as it is to be opened."""

    mode: WandbMode  # online or offline
    project: str
    name: str
    run_id: str
    folder: Path
    config: Mapping[str, object]  # redacted


def resolve_mode(config: TrackingConfig, environ: Mapping[str, str]) -> WandbMode:
    """What `auto` means here: WANDB_MODE when it is set, else online with a key in the environment, else offline.

    Raises UserError for `online` without a key, where wandb would stop and ask for one.
    """
    has_key = bool(environ.get("WANDB_API_KEY"))
    mode = config.wandb
    if mode is WandbMode.auto:
        asked = environ.get("WANDB_MODE", "")
        fallback = WandbMode.online if has_key else WandbMode.offline
        mode = WandbMode[asked] if asked in WandbMode.__members__ and asked != WandbMode.auto.name else fallback
    if mode is WandbMode.online and not has_key:
        raise UserError(
            "tracking.wandb=online needs WANDB_API_KEY in the environment; set it, or use tracking.wandb=offline and "
            "upload later with `wandb sync`"
        )
    return mode


class Tracker:
    """Writes one line a step and passes it on. Belongs to the controller; not thread-safe."""

    def __init__(
        self,
        folder: RunPaths,
        config: TrackingConfig,
        *,
        run_config: object,
        resumed_step: int | None,
        environ: Mapping[str, str],
    ) -> None:
        """Open metrics.jsonl after `resumed_step` (None: from nothing) and start W&B as configured.

        `run_config` is the whole configuration, shown in W&B without secrets. Raises UserError as `resolve_mode`.
        """
        mode = resolve_mode(config, environ)
        self._sample_limit = config.wandb_samples
        self._log = MetricsLog(folder.metrics, keep_to_step=-1 if resumed_step is None else resumed_step)
        if self._log.dropped_steps or self._log.dropped_lines:
            dropped = self._log.dropped_steps, self._log.dropped_lines
            _log.info("metrics.jsonl: dropped %d steps that will be done again and %d torn lines", *dropped)
        self._warned_names: set[str] = set()
        self._wandb: _WandbThread | None = None
        if mode is not WandbMode.disabled:
            shown = Redactor.from_environ(environ).tree(plain(run_config))
            assert isinstance(shown, dict)
            self._wandb = _WandbThread(
                WandbTarget(mode, config.project, folder.path.name, folder.wandb_run_id(), folder.path, shown)
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step; a second call for the same step joins its line.

        A value that is not finite is written as null, counted in `ledger/non_finite_metrics` and warned of once a name.
        Raises ValueError for a name that is not group/name and for a step older than the newest.
        """
        row = self._log.append(step, metrics)
        missing = [name for name in metrics if row.values[name] is None]
        if missing:
            row = self._log.append(step, {NON_FINITE: float(sum(v is None for v in row.values.values()))})
            for name in set(missing) - self._warned_names:
                _log.warning("step %d: %s is not finite; written as null", step, name)
                self._warned_names.add(name)
        if self._wandb is not None:
            self._wandb.put_row(row)

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Show `tracking.wandb_samples` answers of a step in the W&B table; the parquet files hold all of them."""
        if self._wandb is not None and self._sample_limit:
            self._wandb.put_samples([_sample_cells(step, row) for row in rows[: self._sample_limit]])

    def finish(self, *, exit_code: int, deadline_s: float = _FINISH_TIMEOUT_S) -> None:
        """Close everything; W&B gets at most `deadline_s` seconds (what it has not sent stays in the run folder)."""
        self._log.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code, deadline_s)

    @property
    def where(self) -> str | None:
        """W&B's address of the run, or its offline folder once it is open; None while there is neither."""
        return self._wandb.where if self._wandb is not None else None


def _sample_cells(step: int, row: SampleRow) -> list[object]:
    components = ", ".join(f"{name} {value:.3g}" for name, value in row.reward_components.items())
    return [
        step, row.max_policy_version, row.prompt, row.response, row.reward, row.reward_failure or components,
        row.advantage, len(row.response_ids), row.finish_reason.value,
    ]  # fmt: skip


class _WandbThread:
    """Runs every wandb call in order on one thread that nobody has to wait for."""

    def __init__(self, target: WandbTarget) -> None:
        self.where: str | None = None
        self._target = target
        self._calls: queue.Queue[Callable[[wandb.Run], None] | None] = queue.Queue(_QUEUE_SIZE)
        self._exit_code = 0
        self._lag_warned = False
        self._given_up = False
        self._table: wandb.Table | None = None
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def put_row(self, row: MetricRow) -> None:
        """Numbers that are none are left out: W&B would draw them as 0 or refuse the line."""
        values = {name: value for name, value in row.values.items() if value is not None}
        self._put(lambda run: run.log({STEP_AXIS: row.step, **values}))

    def put_samples(self, rows: Sequence[Sequence[object]]) -> None:
        """Add rows to the one growing table."""

        def call(run: wandb.Run) -> None:
            import wandb

            if self._table is None:
                self._table = wandb.Table(columns=list(_SAMPLE_COLUMNS), log_mode="INCREMENTAL")
            for row in rows:
                self._table.add_data(*row)
            run.log({"samples": self._table})

        self._put(call)

    def finish(self, exit_code: int, deadline_s: float) -> None:
        """Let the thread send what it has, for at most `deadline_s` seconds."""
        self._exit_code = exit_code
        deadline = time.monotonic() + deadline_s
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._calls.put(None, timeout=deadline_s)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._given_up = True
            _log.warning("Weights & Biases did not finish in %.0f s; the run folder has everything", deadline_s)

    def _put(self, call: Callable[[wandb.Run], None]) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._lag_warned:
                _log.warning("Weights & Biases is %d steps behind; metrics.jsonl has all of them", _QUEUE_SIZE)
            self._lag_warned = True

    def _work(self) -> None:
        try:
            run = self._open()
            while (call := self._calls.get()) is not None:
                call(run)
            run.finish(exit_code=self._exit_code)
        # The thread is expendable as a whole and wandb raises classes of its private modules: whatever it was is said
        # once and ends here.
        except Exception as error:
            if not self._given_up:
                _log.warning("Weights & Biases stopped (%s: %s); metrics.jsonl goes on", type(error).__name__, error)

    def _open(self) -> wandb.Run:
        import wandb

        try:
            run = self._init(self._target.mode)
        except wandb.Error as error:
            if self._target.mode is not WandbMode.online:
                raise
            _log.warning("Weights & Biases cannot be reached (%s); writing its offline folder instead", error)
            run = self._init(WandbMode.offline)
        run.define_metric(STEP_AXIS, hidden=True)
        for group in groups():
            run.define_metric(f"{group}/*", step_metric=STEP_AXIS)
        address = None if run.offline else run.url  # asked offline, wandb would print a warning
        self.where = address or str(Path(run.dir).parent)
        return run

    def _init(self, mode: WandbMode) -> wandb.Run:
        """Everything is said explicitly, so that no prompt, console capture or machine description can happen."""
        import wandb

        return wandb.init(
            project=self._target.project,
            name=self._target.name,
            id=self._target.run_id,
            resume="allow" if mode is WandbMode.online else None,
            dir=str(self._target.folder),
            config=dict(self._target.config),
            notes=markdown(),
            settings=wandb.Settings(
                mode="online" if mode is WandbMode.online else "offline",
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=True,
                init_timeout=_START_TIMEOUT_S,
                finish_timeout=_FINISH_TIMEOUT_S,
            ),
        )
