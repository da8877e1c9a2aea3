"""Which models have learned from what was forgotten, and the least that has to be trained again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from raylign.conf.errors import DataError
from raylign.data.data_ledger import DataLedger, file_ledger
from raylign.evals.registry import Registry
from raylign.records.lineage import Concerned, KnownRun, concerned_by, known_runs

NONE = "No run was trained on what is forgotten"


def forgotten_models(asked: DataLedger, roots: Sequence[Path], registry: Path) -> Iterator[str]:
    """Lines for a person: the models, then what clears them. Raises DataError for a damaged ledger of a run."""
    runs = known_runs(roots)
    places = ", ".join(f"{root}/" for root in roots)
    blind = [run.name for run in runs if run.ledger is None]
    if blind:
        yield (
            f"{len(blind)} runs in {places} keep no ledger of their rows, as runs of earlier versions, so what they "
            f"learned from is not known: {', '.join(blind)}."
        )
    concerned = concerned_by(runs, asked)
    if not concerned:
        yield f"{NONE}, of the {len(runs) - len(blind)} runs in {places} that keep a ledger."
        return
    released = _aliases(registry)
    yield f"Trained on what is forgotten ({len(concerned)} of {len(runs)} runs in {places}):"
    for one in concerned:
        aliases = [name for name, model in released if model.is_relative_to(one.run.folder)]
        used = f"; {' and '.join(aliases)} points to it" if aliases else ""
        yield f"  {_kind(one.run)} {one.run.name}: {_why(one)}{used}"
    first = [one.run.name for one in concerned if not one.through]
    yield f"To clear them, train again from {', '.join(first)} on, in this order:"
    for one in concerned:
        models = [f"{role}.model={run.name} (trained again)" for role, run in one.through.items()]
        yield f"  {one.run.name}: {', '.join([*models, *_rows(one, asked)])}"


def _kind(run: KnownRun) -> str:
    return "reward model" if run.scores else "policy"


def _why(one: Concerned) -> str:
    own = [f"its own rows name {one.own:,} of the events"] if one.own else []
    return "; ".join([*own, *(f"it has its {role} model of {run.name}" for role, run in one.through.items())])


def _rows(one: Concerned, asked: DataLedger) -> Iterator[str]:
    """Whether the file that the run was trained on is clean by now."""
    if not one.own:
        return
    try:
        source = str(yaml.safe_load((one.run.folder / "resolved.yaml").read_text(encoding="utf-8"))["data"]["train"])
        left = file_ledger(source).shared(asked)
    except (OSError, yaml.YAMLError, KeyError, TypeError, DataError):
        yield "its data.train cannot be read; build it again"
        return
    if not Path(source).exists():
        yield f"data.train={source} is gone; build it again"
    elif left:
        yield f"data.train={source} still names {left:,} of the events; build it again"
    else:
        yield f"data.train={source}, which names none of the events any more"


def _aliases(registry: Path) -> list[tuple[str, Path]]:
    aliases = Registry(registry)
    found = []
    for path in sorted(registry.glob("*.json")):
        release = aliases.current(path.stem)
        if release:
            found.append((path.stem, Path(release.model).resolve()))
    return found
