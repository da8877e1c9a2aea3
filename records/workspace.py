"""The saved W&B workspace: the few headline panels, pinned and in the order of the report's questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raylign.conf.errors import UserError
from raylign.records.glossary import describe
from raylign.records.wandb_login import DEFAULT_URL, key_source, server_url
from raylign.records.wandb_sink import STEP_AXIS, own_entity

NAME = "Raylign"


@dataclass(frozen=True, slots=True)
class PanelPlan:
    """One chart: what it is called and the metrics drawn in it."""

    title: str
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SectionPlan:
    """One section of the workspace."""

    title: str
    panels: tuple[PanelPlan, ...]


def _panels(*metrics: str | tuple[str, ...]) -> tuple[PanelPlan, ...]:
    """One panel a metric, called as the glossary calls it; a tuple draws several names of one thing in one panel."""
    found = []
    for names in ((m,) if isinstance(m, str) else m for m in metrics):
        entry = describe(names[0])
        unit = f", {entry.unit}" if entry and entry.unit else ""
        found.append(PanelPlan(f"{entry.title if entry else names[0]}{unit}", names))
    return tuple(found)


SECTIONS = (
    SectionPlan(
        "Is it getting better?",
        _panels(
            "reward/mean", "eval/held_out/reward", "eval/held_out/gold_score",
            ("train/loss", "eval/held_out/loss"),
            ("train/accuracy", "train/rewards/accuracies", "eval/held_out/accuracy"),
        ),
    ),
    SectionPlan(
        "Does it stay itself?",
        _panels("policy/kl", ("policy/entropy", "train/entropy"), "rollout/response_length", "rollout/truncated_ratio"),
    ),
    SectionPlan(
        "Is the learning sound?",
        _panels(
            "policy/clip_fraction", ("policy/grad_norm", "train/grad_norm"), "critic/explained_variance",
            "reward/zero_variance_groups", "reward/failed", "ledger/non_finite_metrics",
        ),
    ),
    SectionPlan(
        "Do the parts agree, and how fast?",
        _panels("rollout/logprob_gap", "sync/canary_gap", "rollout/staleness_max", "perf/tokens_per_s", "time/step"),
    ),
)  # fmt: skip


def save_workspace(project: str, entity: str, environ: Mapping[str, str]) -> str:
    """Save the view `Raylign` in a W&B project and return its address.

    `entity` empty: WANDB_ENTITY, else the account's own. Raises UserError without the package, without a key, and when
    the server refuses.
    """
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError:
        raise UserError(
            "raylign wandb workspace needs the package wandb-workspaces: `pip install wandb-workspaces`"
        ) from None
    server = server_url(environ)
    if key_source(environ, server) is None:
        raise UserError(f"there is no key for {server}: run `wandb login`, or set WANDB_API_KEY")
    try:
        owner = entity or environ.get("WANDB_ENTITY") or own_entity()
        workspace = build_workspace(project, owner)
        workspace.save()
    # The package has no errors of its own for what a server says: whatever it raises is the answer to the request.
    except Exception as error:
        hint = "see whether --project and --entity name one of its projects"
        if server != DEFAULT_URL:
            hint += "; a server other than W&B's may have no saved views at all"
        raise UserError(f"{server} did not take the workspace for project {project} ({error}); {hint}") from error
    return str(workspace.url)


def build_workspace(project: str, entity: str) -> Any:
    """The view as wandb-workspaces' own object; nothing is sent."""
    from wandb_workspaces.reports.v2 import LinePlot
    from wandb_workspaces.workspaces import Section, Workspace, WorkspaceSettings

    sections = [
        Section(
            name=section.title,
            is_open=True,
            pinned=True,
            panels=[LinePlot(title=p.title, x=STEP_AXIS, y=list(p.metrics)) for p in section.panels],
        )
        for section in SECTIONS
    ]
    return Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=WorkspaceSettings(x_axis=STEP_AXIS),
        auto_generate_panels=False,
    )
