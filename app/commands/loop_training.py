"""One training of a night: what it learns from, whether an earlier night has done it already, and the run itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from raylign.app.configuration import compose
from raylign.app.launch.inputs import run_inputs
from raylign.app.main import run, settled
from raylign.conf.compose import Composed
from raylign.conf.loop import BUILD, CURRENT, Kind, Rows, TrainingConfig, filled
from raylign.conf.model_folder import model_folder
from raylign.conf.schema import RunConfig, TrackingConfig
from raylign.evals.results import model_digest
from raylign.feedback.build_result import BuildResult, read_result
from raylign.feedback.growth import write_new_rows, write_sample
from raylign.records.manifest import digest
from raylign.records.nights import DoneStage, Night, Nights, made_before
from raylign.records.run_folder import RunPaths, plain
from rich.console import Console

_PER_HELD_OUT = 5
"""Training rows for each held-out one, where a training's rows are limited."""


class NoRows(Exception):
    """The build has nothing that a training learns from; the text is for the user."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a training is given of its night."""

    nights: Nights
    night: Night
    current: Path  # the model that people use
    before: Path | None  # the build that the current model was trained on, where a night of this loop made it
    console: Console
    say: Callable[[str], None]

    @property
    def build(self) -> Path:
        """The night's build."""
        return self.nights.path(self.night) / BUILD

    def folders(self) -> dict[str, Path]:
        """What names in braces stand for: models of earlier trainings by name, beside the build and the current one."""
        trained = {
            stage.name.removeprefix("train "): Path(stage.made)
            for stage in self.night.stages
            if stage.name.startswith("train ")
        }
        return {BUILD: self.build.absolute(), CURRENT: self.current, **trained}


def composed_training(
    training: TrainingConfig,
    folders: Mapping[str, Path],
    data: tuple[str, ...],
    name: str,
    run_root: Path,
    *,
    elsewhere: bool = False,
) -> Composed:
    """The run of a training. `data`: settings that name its rows; `elsewhere`: what they name need not be there yet.

    Raises ConfigError.
    """
    given = filled(training.settings, folders)
    return compose([*data, *given, f"name={name}", f"run_root={run_root.absolute()}"], elsewhere=elsewhere)


def train(training: TrainingConfig, of: Surroundings) -> Night:
    """The night with this training done, by itself or by an earlier night.

    Raises NoRows, and what a run raises: it is resumed from its last checkpoint when the stage is begun again.
    """
    data, said = _data(training, of)
    if data is None:
        of.say(said)
        return of.nights.done(of.night, f"train {training.name}", said, made=str(of.current))
    name = f"night-{of.night.number:04d}-{training.name}"
    runs = of.nights.folder / "runs"
    runs.mkdir(exist_ok=True)
    composed = composed_training(training, of.folders(), data, name, runs)
    key = training_key(settled(composed.config, fetch=of.say))
    if found := made_before(of.nights.all(), key):
        return _reused(training, of, found, key)
    if said:
        of.say(said)
    paths = RunPaths(runs / name)
    if not paths.summary.is_file():  # else it ended, and the loop with it, before that was noted
        run(composed, console=of.console)
    made = Path(model_folder(str(paths.path)).path).absolute()
    return of.nights.done(of.night, f"train {training.name}", f"trained as {name}; {said}", key=key, made=str(made))


def training_key(config: RunConfig) -> str:
    """Hash of all settings but the run's names, with the content of what it reads in place of each path."""
    tree = plain(replace(config, name="", run_root="", tracking=TrackingConfig()))
    assert isinstance(tree, dict)
    contents = {}
    for key, path in run_inputs(config).items():
        contents[key] = model_digest(path) if (path / "config.json").is_file() else digest(path)
        _blank(tree, key.split("."))
    text = json.dumps([tree, contents], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _blank(tree: object, path: list[str]) -> None:
    if isinstance(tree, dict) and path[0] in tree:
        if len(path) == 1:
            tree[path[0]] = ""
        else:
            _blank(tree[path[0]], path[1:])


def _reused(training: TrainingConfig, of: Surroundings, found: tuple[Night, DoneStage], key: str) -> Night:
    before, stage = found
    said = f"{training.name}: the model of night {before.number} is used again; its rows, models and settings are equal"
    of.say(said)
    return of.nights.done(of.night, f"train {training.name}", said, key=key, made=stage.made)


def _data(training: TrainingConfig, of: Surroundings) -> tuple[tuple[str, ...] | None, str]:
    """Settings that name the rows, None where the current model has learned all of them; and a sentence."""
    if training.kind is Kind.none:
        return (), ""
    kind = training.kind.value
    rows = _rows(read_result(of.build), kind)
    if not rows["train"]:
        raise NoRows(f"{training.name}: the build has no row of {kind} to train on; more feedback is needed")
    held_out = (f"data.eval={of.build.absolute() / kind / 'eval.jsonl'}",) if rows["eval"] else ()
    if training.rows is Rows.all and training.most:
        return _sample(training, of, rows)
    if training.rows is Rows.all:
        whole = of.build.absolute() / kind / "train.jsonl"
        return (f"data.train={whole}", *held_out), f"{training.name}: all {rows['train']:,} rows of {kind}"
    fresh = of.nights.path(of.night).absolute() / "new" / f"{kind}.jsonl"
    grown = write_new_rows(of.build, of.before, kind, fresh)
    lost = (
        f"; {grown.gone:,} rows that the current model was trained on are in the build no longer, and training on new "
        "rows does not undo that: `raylign feedback forget` lists what does"
        if grown.gone
        else ""
    )
    if not grown.new:
        return None, f"{training.name}: no new row of {kind}; the current model stays as it is{lost}"
    began = "the current model was made by no night of this loop, so every row is new" if of.before is None else (
        f"{grown.kept:,} that the current model was trained on are left out"
    )  # fmt: skip
    return (f"data.train={fresh}", *held_out), f"{training.name}: {grown.new:,} new rows of {kind}; {began}{lost}"


def _sample(training: TrainingConfig, of: Surroundings, rows: Mapping[str, int]) -> tuple[tuple[str, ...], str]:
    """Settings that name at most `most` rows, and a fifth as many held-out ones."""
    settings, most, kind = [], training.most, training.kind.value
    for split, limit in (("train", most), ("eval", max(1, most // _PER_HELD_OUT))):
        if rows[split]:
            file = of.nights.path(of.night).absolute() / "sampled" / f"{training.name}-{split}.jsonl"
            write_sample(of.build / kind / f"{split}.jsonl", limit, file)
            settings.append(f"data.{split}={file}")
    return tuple(settings), f"{training.name}: {min(most, rows['train']):,} of {rows['train']:,} rows of {kind}"


def _rows(result: BuildResult, kind: str) -> dict[str, int]:
    return {made.split: made.rows for made in result.produced if made.kind == kind}
