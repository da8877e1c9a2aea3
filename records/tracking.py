"""The one writer of a run's numbers: metrics.jsonl always, the sinks of the settings as fan-out, alerts on the way."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

from raylign.conf.schema import RunConfig, WandbMode
from raylign.conf.schema import Sink as SinkName
from raylign.records.alert_watch import AlertWatch
from raylign.records.alerts import Alert, StepRecord, step_record
from raylign.records.atomic import write_atomic
from raylign.records.manifest import Start
from raylign.records.metrics_log import NON_FINITE, MetricRow, MetricsLog, read_history
from raylign.records.other_sinks import TensorBoardSink, TrackioSink
from raylign.records.redaction import Redactor
from raylign.records.run_folder import RunPaths, plain
from raylign.records.samples import SampleRow
from raylign.records.sinks import Artifact, Sink, SinkTarget, SinkThread
from raylign.records.wandb_login import decide
from raylign.records.wandb_sink import FINISH_TIMEOUT_S, WandbSink

_log = logging.getLogger(__name__)

WANDB = "Weights & Biases"
RESENT_STEPS = 200
"""Sent again at most, after a life that did not end in order. W&B's process writes nothing for some seconds, and dies
with its driver."""


class Tracker:
    """Writes one line a step and passes it on. Belongs to the controller; not thread-safe."""

    def __init__(
        self,
        folder: RunPaths,
        config: RunConfig,
        *,
        resumed_step: int | None,
        environ: Mapping[str, str],
        say: Callable[[str], None] = _log.info,
        start: Start | None = None,
    ) -> None:
        """Open metrics.jsonl after `resumed_step` (None: from nothing) and start the sinks as configured.

        `say` gets what a person should read, also from other threads: where the numbers go, and every alert. `start`
        (host, versions, git state; redacted already) is shown beside the configuration, which is shown without
        secrets. Raises UserError as `wandb_login.decide`.
        """
        tracking = config.tracking
        decision = decide(tracking, environ)
        keep_to = -1 if resumed_step is None else resumed_step
        self._folder, self._say = folder, say
        self._sample_limit, self._artifacts = tracking.wandb_samples, tracking.artifacts
        self._gold = config.evaluation.gold
        self._samples = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
        self._log = MetricsLog(folder.metrics, keep_to_step=keep_to)
        if self._log.dropped_steps or self._log.dropped_lines:
            dropped = self._log.dropped_steps, self._log.dropped_lines
            _log.info("metrics.jsonl: dropped %d steps that will be done again and %d torn lines", *dropped)
        self._warned_names: set[str] = set()
        self._shown = -1  # the furthest step the sinks were given: one that is done again is not drawn twice
        self._finished = False
        self._signs: list[Callable[[Alert], None]] = []
        past = [self._record(row) for row in read_history(folder.metrics).rows]
        self._watch = AlertWatch(folder.alerts, keep_to_step=keep_to, tell=self._alert, guard=config.guard, before=past)
        if SinkName.wandb in tracking.sinks:
            say(decision.sentence())
        if environ.get("WANDB_SWEEP_ID"):  # the agent of a sweep knows its runs by the ids it gives them
            folder.wandb_run_id(environ.get("WANDB_RUN_ID", ""))
        target = sink_target(folder, config, decision.mode, Redactor.from_environ(environ), start)
        self._sinks = [SinkThread(name, opener, said=self._opened) for name, opener in _openers(tracking.sinks, target)]
        self._send_again(keep_to)

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
        self._show(row)
        self._watch.step(self._record(row))

    def _record(self, row: MetricRow) -> StepRecord:
        return step_record(row, gold=self._gold, samples=self._samples)

    def on_alert(self, call: Callable[[Alert], None]) -> None:
        """`call` gets every alert too, from the thread that found it: for one of a step, before `log` returns."""
        self._signs.append(call)

    def best_step(self, saved: Sequence[int]) -> int | None:
        """The best of the steps with a checkpoint, by the gold score, else the newest; None: there is none."""
        return self._watch.best_step(saved)

    def rewind(self, step: int) -> None:
        """Steps after `step` are done again in this process: their lines are dropped and written anew."""
        self._log.rewind(step)
        self._watch.rewind(step)

    def _send_again(self, keep_to: int) -> None:
        """What a killed life has sent and the sinks may have lost; a step sent twice is one point of the curve."""
        sent = self._folder.sinks_sent
        last = int(sent.read_text(encoding="ascii")) if sent.exists() else -1
        if keep_to < last:  # what was sent beyond is of a history that is done again
            last = keep_to
            write_atomic(sent, str(last))
        kept = [row for row in read_history(self._folder.metrics).rows if row.step > last]
        for row in kept[-RESENT_STEPS:]:
            self._show(row)

    def _show(self, row: MetricRow) -> None:
        """Numbers that are none are left out: W&B would draw them as 0 or refuse the line."""
        if row.step < self._shown:
            return
        self._shown = row.step
        values = {name: value for name, value in row.values.items() if value is not None}
        for sink in self._sinks:
            sink.put(lambda opened: opened.log(row.step, values))

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Show `tracking.wandb_samples` answers of a step in the sinks; the parquet files hold all of them."""
        if self._sample_limit:
            cells = [_sample_cells(step, row) for row in rows[: self._sample_limit]]
            for sink in self._sinks:
                sink.put(lambda opened: opened.samples(cells))

    def log_artifacts(self, artifacts: Sequence[Artifact]) -> None:
        """Name what the run reads or has written, where `tracking.artifacts` wants that."""
        given = tuple(artifacts) if self._artifacts else ()

        def show(opened: Sink) -> None:
            for artifact in given:
                opened.artifact(artifact)

        for sink in self._sinks:
            sink.put(show)

    def finish(self, *, exit_code: int, deadline_s: float = FINISH_TIMEOUT_S) -> None:
        """Close everything; each sink gets at most `deadline_s` seconds (the run folder has what it has not sent).

        A second call does nothing.
        """
        if self._finished:
            return
        self._finished = True
        self._watch.close()
        self._log.close()
        for sink in self._sinks:
            sink.finish(exit_code, deadline_s)
        if self._sinks and all(sink.ended for sink in self._sinks):
            with contextlib.suppress(OSError):  # a full disk, perhaps what ends the run; steps are sent again then
                write_atomic(self._folder.sinks_sent, str(self._shown))

    @property
    def where(self) -> Mapping[str, str]:
        """Address or folder of every sink that is open, by its name."""
        return {sink.name: sink.where for sink in self._sinks if sink.where is not None}

    def _opened(self, sentence: str) -> None:
        self._say(sentence)
        address = sentence.removeprefix(f"{WANDB}: ")
        if address.startswith("http"):
            write_atomic(self._folder.wandb_address, address + "\n")

    def _alert(self, alert: Alert) -> None:
        self._say(f"alert, step {alert.step}: {alert.kind.value}: {alert.text}")
        for sink in self._sinks:
            sink.put(lambda opened: opened.alert(alert))
        for call in self._signs:
            call(alert)


def sink_target(
    folder: RunPaths, config: RunConfig, mode: WandbMode, redactor: Redactor, start: Start | None
) -> SinkTarget:
    """The run as sinks show it; `auto` resolved, no secret in it."""
    tracking = config.tracking
    shown = redactor.tree(plain(config))
    assert isinstance(shown, dict)
    if start is not None:
        shown["start"] = redactor.tree(plain(asdict(start)))
    return SinkTarget(
        mode=mode,
        project=tracking.project,
        name=folder.path.name,
        run_id=folder.wandb_run_id(),
        folder=folder.path,
        config=shown,
        entity=tracking.entity,
        group=folder.path.name if tracking.group == "auto" else tracking.group,
        job_type=config.algorithm.label if tracking.job_type == "auto" else tracking.job_type,
        tags=tuple(tracking.tags),
        system_metrics=tracking.system_metrics,
    )


def _openers(names: Sequence[SinkName], target: SinkTarget) -> list[tuple[str, Callable[[], Sink]]]:
    known: dict[SinkName, tuple[str, Callable[[SinkTarget], Sink]]] = {
        SinkName.wandb: (WANDB, WandbSink),
        SinkName.tensorboard: ("TensorBoard", TensorBoardSink),
        SinkName.trackio: ("trackio", TrackioSink),
    }
    off = target.mode is WandbMode.disabled
    return [
        (known[name][0], partial(known[name][1], target))
        for name in dict.fromkeys(names)
        if not (name is SinkName.wandb and off)
    ]


def _sample_cells(step: int, row: SampleRow) -> list[object]:
    components = ", ".join(f"{name} {value:.3g}" for name, value in row.reward_components.items())
    return [
        step, row.max_policy_version, row.prompt, row.response, row.reward, row.reward_failure or components,
        row.advantage, len(row.response_ids), row.finish_reason.value,
    ]  # fmt: skip
