"""What a run reads and writes as references for a sink's lineage page."""

from __future__ import annotations

from pathlib import Path

from raylign.conf.held_out import held_out_sets
from raylign.conf.schema import RunConfig
from raylign.records.manifest import Start
from raylign.records.run_folder import RunPaths
from raylign.records.sinks import Artifact


def read_artifacts(config: RunConfig, start: Start) -> list[Artifact]:
    """Data sets and models that are files here, with the digests of the manifest."""
    held_out = {f"data.eval.{name}": source for name, source in held_out_sets(config.data.eval).items()}
    sets = {"data.train": config.data.train, **held_out}
    roles = ("policy", "critic", "reference", "reward")
    models = {f"{role}.model": getattr(config, role).model for role in roles}
    named = {**dict.fromkeys(sets, "dataset"), **dict.fromkeys(models, "model")}
    found = {}
    for key, value in {**sets, **models}.items():
        path = Path(value)
        if value and path.is_absolute() and path.exists():
            digest = start.inputs.get(key, start.inputs.get("data.eval", "") if key.startswith("data.eval") else "")
            found[path] = Artifact(_name(path), named[key], path, digest, output=False)
    return list(found.values())


def written_artifacts(folder: RunPaths) -> list[Artifact]:
    """The run's exports, the newest last, so that `latest` is it."""
    exports = [path for path in folder.export.glob("step-*") if path.is_dir()]
    ordered = sorted(exports, key=lambda path: int(path.name.removeprefix("step-")))
    return [Artifact(_name(path), "model", path, "", output=True, aliases=(path.name,)) for path in ordered]


def _name(path: Path) -> str:
    """One name for a file or export in every run that reads or writes it: an export is named after its run."""
    return f"{path.parent.parent.name}-export" if path.parent.name == "export" else path.name
