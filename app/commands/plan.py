"""`raylign plan`: what a run would do, without starting any of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import cast

from raylign.app.commands.marked import marked
from raylign.app.commands.plan_memory import (
    ASSUMED_CARD,
    SuppliedCluster,
    assumed_card,
    memory_rows,
    outside_rows,
    phase_rows,
    publication_note,
    refuse_overfull,
    run_memory,
)
from raylign.app.commands.plan_rewards import reward_model_lines, reward_tables
from raylign.app.configuration import needs, roles
from raylign.app.launch.chain import named_runs, with_model_folders
from raylign.app.launch.demand import role_requests
from raylign.app.launch.environment import environment_rows
from raylign.app.launch.fitting import of_rows, of_settings, refuse_unfit
from raylign.app.launch.guard import guard_rows
from raylign.app.launch.refusals import refuse_impossible
from raylign.app.launch.reward_trial import try_rewards
from raylign.app.launch.rows import TRAIN, read_offline, read_online
from raylign.app.launch.trained import trained_models, untried_models
from raylign.cluster.placement import NodeSupply, Placement, RoleRequest, plan_placement, total_cpus
from raylign.cluster.probe import cluster_supply
from raylign.cluster.runtime_env import in_ray_job
from raylign.conf.checks import Needs
from raylign.conf.compose import Composed
from raylign.conf.derive import Surroundings, batch_plan, resolve, run_name
from raylign.conf.schema import Device, RunConfig
from raylign.data.mask_view import first_row
from raylign.data.quarantine import LoadReport
from raylign.records.manifest import read_manifest
from raylign.records.wandb_login import decide
from raylign.trainer.algorithms import algorithm_of
from raylign.trainer.algorithms.base import OfflineAlgorithm, Role
from raylign.trainer.memory_plan import GB

ASSUMED_CARD_GB = 80.0


def plan(composed: Composed, *, colour: bool = False, cluster: SuppliedCluster | None = None) -> Iterator[str]:
    """The plan, part by part; `colour`: for a terminal; `cluster`: one that need not be there.

    Raises DataError, ModelLoadError or ClusterError where the run itself would.
    Reads and tokenises all of the data, calls reward functions once (no servers), asks the cluster when the run would
    join one, and starts nothing.
    """
    config = with_model_folders(composed.config)
    now = datetime.now(UTC).astimezone()
    needed = needs(config)
    requests = role_requests(config, roles(config))
    refuse_impossible(config, needed, to_run=cluster is None)
    yield f"raylign plan: {run_name(config, now)}, algorithm={config.algorithm.name}\n"
    if notices := [*untried_models(config), *named_runs(composed.config)]:
        yield "\n".join(notices) + "\n"
    num_rows = None
    if cluster is not None and not _has_tokenizer(config.policy.model):
        refuse_unfit(config, of_settings(config, online=needed.rollout))
        yield f"Data: not read, for {config.policy.model} has no tokenizer.\n"
    else:
        reports, num_rows, sample = _read_data(config, needed, _run_date(config, now), colour=colour)
        yield _table("Data", ("set", "rows", "used", "bad", "overlong", "dropped"), [_data_row(r) for r in reports])
        yield f"The first row, as the model sees it:\n{sample}\n"
    yield _table("Models in training", ("role", "parameters", "trained", "what is"), _model_rows(config))
    arithmetic = batch_plan(config, needed, num_rows)
    yield _table("Batches", ("what", "how many"), arithmetic.rows())
    if needed.reward:
        yield from (_table(*part) for part in reward_tables(config.reward))
        yield from reward_model_lines(config)
    if needed.rollout and (acted := environment_rows(config)):
        yield _table("Environment", ("what", "how"), acted)
    yield _table("Guard", ("sign", "what is done", "limit"), guard_rows(config.guard, online=needed.rollout))
    if config.evaluation.suites:
        yield f"Suites, answered before and after the run: {', '.join(config.evaluation.suites)}.\n"
    yield _table("Left open", ("setting", "given", "becomes", "because"), _open_settings(config, needed, requests, now))
    yield _table("Demand", ("role", "processes", "CPUs each", "GPUs each"), [_demand_row(r) for r in requests])
    yield from _memory(config, needed, cluster)
    nodes = cluster.supply(total_cpus(requests)) if cluster else _supply(config, requests)
    rows = [row for placement in placements(config, nodes) for row in _placement_rows(placement, nodes)]
    yield _table("Placement", ("node", "role", "ranks", "CPUs", "GPUs"), rows)


def _memory(config: RunConfig, needed: Needs, cluster: SuppliedCluster | None) -> Iterator[str]:
    """Bytes on cards and beside them. Raises ClusterError when cards are too small; on CPU nothing is refused."""
    on_gpu = config.cluster.device is Device.cuda
    card_bytes = (cluster.card_gb if cluster else ASSUMED_CARD_GB) * GB
    memory = run_memory(config, needed, card_bytes)
    if on_gpu:
        yield _table("Cards", ("role", "processes", "cards each", "GB on a card", "of which"), memory_rows(memory))
        where = "as --cluster says" if cluster else "assumed; say --cluster NODESxCARDSxGB for others"
        yield f"Cards of {card_bytes / GB:g} GB, {where}. Estimates from shapes, not yet compared with a GPU.\n"
    yield _table("Elsewhere", ("what", "how much"), outside_rows(config, memory))
    if on_gpu and needed.rollout:
        rows = phase_rows(config, memory, assumed_card())
        yield _table(f"A step at the greatest lengths, on {ASSUMED_CARD}s (estimate)", ("phase", "s", "share"), rows)
        yield publication_note(memory) + "\n"
    if on_gpu:
        refuse_overfull(config, memory, card_bytes)


def _has_tokenizer(folder: str) -> bool:
    return any((Path(folder).expanduser() / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def placements(config: RunConfig, nodes: Sequence[NodeSupply]) -> Iterator[Placement]:
    """Where the run's processes go, stage by stage: an offline run's reference is gone before training begins.

    Raises ClusterError for a stage that does not fit.
    """
    requests = role_requests(config, roles(config))
    apart = [] if needs(config).rollout else [r for r in requests if r.role == Role.REFERENCE.value]
    for stage in ([apart] if apart else []) + [[r for r in requests if r not in apart]]:
        yield plan_placement(stage, config.cluster.placement, nodes)


def _read_data(config: RunConfig, needed: Needs, today: date, *, colour: bool) -> tuple[list[LoadReport], int, str]:
    """Reports of data.train and every held-out set; how much there is to draw from; and the first training row with
    what is odd, in words."""
    if needed.rollout:
        online = read_online(config, today)
        refuse_unfit(config, of_rows(config, online))
        notices = [*online.notices, *try_rewards(config, online.train.prompts, online.tokenizer, only_here=True)]
        prompt_sets = [online.train, *([online.held_out] if online.held_out else [])]
        first = online.train.prompts[0]
        shown = f"{online.tokenizer.decode(first.token_ids)!r} ({len(first.token_ids)} tokens)"
        return [loaded.report for loaded in prompt_sets], len(online.train.prompts), "\n".join([shown, *notices])
    algorithm = cast("OfflineAlgorithm", algorithm_of(config.algorithm))
    offline = read_offline(config, algorithm.needs, today)
    refuse_unfit(config, of_rows(config, offline))
    parts = [marked(runs, colour=colour) for runs in first_row(offline.sets[TRAIN], offline.tokenizer)]
    parts += offline.notices or ["The masks of the first rows: nothing odd."]
    return [loaded.report for loaded in offline.sets.values()], len(offline.sets[TRAIN]), "\n".join(parts)


def _open_settings(
    config: RunConfig, needed: Needs, requests: Sequence[RoleRequest], now: datetime
) -> list[tuple[str, ...]]:
    here = Surroundings(
        now=now,
        cores=os.cpu_count() or 1,
        wandb=(decision := decide(config.tracking, os.environ)).mode.value,
        wandb_why=decision.why,
        checkpoint=_latest_checkpoint(config, now),
        in_ray_job=in_ray_job(),
        demanded_cpus=total_cpus(requests),
    )
    return [(found.key, found.given, found.value, found.why) for found in resolve(config, needed, here)]


def _run_date(config: RunConfig, now: datetime) -> date:
    """What chat templates print: the date of the run's first start, or today."""
    manifest = Path(config.run_root).expanduser() / run_name(config, now) / "manifest.json"
    return read_manifest(manifest).today if manifest.is_file() else now.date()


def _latest_checkpoint(config: RunConfig, now: datetime) -> str | None:
    """Where LATEST of the run's folder points; the run itself verifies it before use."""
    pointer = Path(config.run_root).expanduser() / run_name(config, now) / "checkpoints" / "LATEST"
    return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None


def _supply(config: RunConfig, requests: Sequence[RoleRequest]) -> Sequence[NodeSupply]:
    """This machine as a Ray started here would offer it, or the machines of the cluster the run would join."""
    demanded = total_cpus(requests)
    if config.cluster.address == "local" and not in_ray_job():
        cpus = config.cluster.num_cpus or max(os.cpu_count() or 1, -(-demanded // 1))
        return [NodeSupply("this machine", "127.0.0.1", cpus, _local_gpus())]
    return cluster_supply("auto" if config.cluster.address == "local" else config.cluster.address)


def _local_gpus() -> int:
    """GPUs as the driver lists them; a node without the driver has none."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if Path("/proc/driver/nvidia/gpus").is_dir() else 0


def _data_row(report: LoadReport) -> tuple[str, ...]:
    counts = (report.total, report.kept, report.bad, report.overlong, report.dropped)
    return (report.name, *(f"{count:,}" for count in counts))


def _model_rows(config: RunConfig) -> list[tuple[str, ...]]:
    return [(m.role, f"{m.parameters:,}", f"{m.trained:,}", m.how) for m in trained_models(config)]


def _demand_row(request: RoleRequest) -> tuple[str, ...]:
    return request.role, str(request.count), f"{request.cpus:g}", f"{request.gpus:g}"


def _placement_rows(placement: Placement, nodes: Sequence[NodeSupply]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for node in nodes:
        for role in dict.fromkeys(slot.role for slot in placement.slots if slot.node_id == node.node_id):
            slots = [slot for slot in placement.of(role) if slot.node_id == node.node_id]
            ranks = ",".join(str(slot.rank) for slot in slots)
            cpus, gpus = sum(slot.cpus for slot in slots), sum(slot.gpus for slot in slots)
            rows.append((f"{node.address}", role, ranks, f"{cpus:g}", f"{gpus:g}"))
    return rows


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Plain columns: the same on a terminal, in a job's log and in a pipe."""
    if not rows:
        return f"{title}: nothing.\n"
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines)]) + "\n"
