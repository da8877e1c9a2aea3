"""A run in TensorBoard and in trackio. Both are optional packages; what is missing is reported before a run begins."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from raylign.conf.errors import UserError
from raylign.conf.schema import Sink as SinkName
from raylign.records.alerts import Alert
from raylign.records.sinks import SAMPLE_COLUMNS, Artifact, SinkTarget


def require_sinks(names: Sequence[SinkName]) -> None:
    """Raises UserError for a sink whose package is not installed."""
    missing = [name.value for name in names if importlib.util.find_spec(name.value) is None]
    if missing:
        packages = " ".join(missing)
        raise UserError(
            f"tracking.sinks names {' and '.join(missing)}, which is not installed here: `pip install {packages}`, or "
            "leave it out"
        )


class TensorBoardSink:
    """See sinks.Sink: event files in `<run>/tensorboard`, read by `tensorboard --logdir`."""

    def __init__(self, target: SinkTarget) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = target.folder / "tensorboard"
        self._writer: Any = SummaryWriter(str(self._folder))

    @property
    def where(self) -> str:
        """Its folder."""
        return str(self._folder)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a metric; a step that is logged twice has two points."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def samples(self, rows: Sequence[Sequence[object]]) -> None:
        """As text, a row a line."""
        for row in rows:
            named = dict(zip(SAMPLE_COLUMNS, row, strict=True))
            text = f"    {named['prompt']}\n\n{named['response']}\n\nreward {named['reward']}"
            self._writer.add_text("samples", text, int(str(named["step"])))

    def alert(self, alert: Alert) -> None:
        """As text: TensorBoard has no alerts."""
        self._writer.add_text("alerts", f"{alert.kind.value}: {alert.text}", alert.step)

    def artifact(self, artifact: Artifact) -> None:
        """TensorBoard has no lineage."""

    def finish(self, exit_code: int) -> None:
        """Every point is written already."""

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class TrackioSink:
    """See sinks.Sink: a local database, shown by `trackio show`; nothing is sent."""

    def __init__(self, target: SinkTarget) -> None:
        import trackio

        self._project = target.project
        self._run: Any = trackio.init(
            project=target.project,
            name=target.name,
            group=target.group or None,
            config=dict(target.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
        )

    @property
    def where(self) -> str:
        """The command that shows it."""
        return f"trackio show --project {self._project}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One step."""
        self._run.log(dict(values), step=step)

    def samples(self, rows: Sequence[Sequence[object]]) -> None:
        """A table of this step's rows."""
        import trackio

        table: Any = trackio.Table(columns=list(SAMPLE_COLUMNS), data=[list(row) for row in rows])
        self._run.log({"samples": table}, step=int(str(rows[0][0])))

    def alert(self, alert: Alert) -> None:
        """On trackio's list of alerts."""
        import trackio

        level = trackio.AlertLevel.ERROR if alert.serious else trackio.AlertLevel.WARN
        self._run.alert(alert.kind.value, f"Step {alert.step}: {alert.text}", level=level, step=alert.step)

    def artifact(self, artifact: Artifact) -> None:
        """trackio has no references."""

    def finish(self, exit_code: int) -> None:
        """Write what is queued."""
        self._run.finish()

    def close(self) -> None:
        """Nothing is left open."""
