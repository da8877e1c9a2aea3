"""Where a run came from and what it cost: date, command, machine, runs before it, its page in W&B."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from raylign.pages.numbers import short
from raylign.records.progress import duration
from raylign.records.report.facts import RunFacts


@dataclass(frozen=True, slots=True)
class Link:
    """Something elsewhere; `address` is empty where it cannot be reached from the page."""

    what: str
    text: str
    address: str


@dataclass(frozen=True, slots=True)
class Origin:
    """The lines under the verdict."""

    started: str
    command: str
    cost: str
    links: tuple[Link, ...]


def origin(facts: RunFacts) -> Origin:
    """As far as it is known: a folder without a manifest has no date and no command."""
    manifest = facts.manifest
    started = command = ""
    if manifest is not None:
        started = when(datetime.fromisoformat(manifest.starts[0].started_at))
        started += f", started {len(manifest.starts)} times" if len(manifest.starts) > 1 else ""
        argv = manifest.current.argv
        command = shlex.join([Path(argv[0]).name, *argv[1:]]) if argv else ""
    return Origin(started, command, _cost(facts), tuple(_links(facts)))


def when(moment: datetime) -> str:
    """A moment for people, UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _cost(facts: RunFacts) -> str:
    """Time in steps over all starts, GPU hours where there are GPUs, and tokens trained."""
    seconds = sum(value for _, value in facts.history.series("time/step") if value is not None)
    parts = [f"{duration(seconds)} in steps"] if seconds else []
    if seconds and facts.gpus:
        parts.append(f"{short(seconds / 3600 * facts.gpus)} GPU hours ({short(facts.gpus)} GPUs)")
    elif seconds:
        parts.append("no GPU")
    tokens = [value for _, value in facts.history.series("train/num_tokens") if value is not None]
    trained = tokens[-1] if tokens else sum(v for _, v in facts.history.series("policy/tokens") if v is not None)
    if trained:
        parts.append(f"{short(trained)} tokens trained")
    return ", ".join(parts)


def _links(facts: RunFacts) -> Sequence[Link]:
    links = [Link("Weights & Biases", facts.wandb_address, facts.wandb_address)] if facts.wandb_address else []
    roles: dict[str, list[str]] = {}
    for role, folder in facts.came_from.items():
        roles.setdefault(folder, []).append(role)
    here = facts.paths.path.resolve()
    for folder, names in roles.items():
        report = Path(folder) / "report.html"
        beside = os.path.relpath(report, here) if report.exists() else ""
        links.append(Link(f"{' and '.join(names)} from", Path(folder).name, beside))
    return links
