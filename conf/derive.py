"""What follows from a configuration: the batch arithmetic, and what every `auto`, 0 or empty becomes. Pure.

Nothing here changes the configuration; `plan` prints it and the launcher uses the same functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from raylign.conf.checks import Needs
from raylign.conf.schema import AdapterSync, Device, LoraConfig, PlacementStrategy, RunConfig


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How much is done when. A unit is a sequence (online) or a row (offline)."""

    unit: str  # "sequences", or "rows"
    num_steps: int  # online: rollout-and-update rounds; offline: optimizer steps
    units_per_step: int
    units_per_update: int
    updates_per_step: int  # over all passes
    total_updates: int  # optimizer steps of the run
    units_per_rank: int  # of one update, on the fullest policy rank
    max_tokens_per_step: int
    num_rows: int | None  # of data.train; None when they were not read
    epochs: float | None  # passes over data.train in the whole run

    def rows(self) -> list[tuple[str, str]]:
        """The arithmetic as label and value, for printing."""
        known = [] if self.num_rows is None else [("rows of data.train", f"{self.num_rows:,}")]
        passes = [] if self.epochs is None else [("epochs over data.train", f"{self.epochs:.2f}")]
        return [
            ("steps", f"{self.num_steps:,}"),
            (f"{self.unit} a step", f"{self.units_per_step:,}"),
            (f"{self.unit} an update", f"{self.units_per_update:,}"),
            ("updates a step", f"{self.updates_per_step:,}"),
            ("updates in all", f"{self.total_updates:,}"),
            (f"{self.unit} of an update on one rank", f"{self.units_per_rank:,}"),
            ("tokens a step, at most", f"{self.max_tokens_per_step:,}"),
            *known,
            *passes,
        ]


def batch_plan(config: RunConfig, needs: Needs, num_rows: int | None) -> BatchPlan:
    """The arithmetic of an online or an offline run. `num_rows`: usable rows of data.train, when they are known.

    Offline with `num_steps=0` the number of steps comes from `num_epochs` and is 0 while the rows are not known.
    """
    algorithm, ranks = config.algorithm, config.policy.num_shards
    per_update = algorithm.units_per_update
    if needs.rollout:
        rollout = config.rollout
        per_step = rollout.prompts_per_step * rollout.samples_per_prompt
        updates = math.ceil(per_step / per_update) * algorithm.passes_per_step
        return BatchPlan(
            unit="sequences",
            num_steps=config.num_steps,
            units_per_step=per_step,
            units_per_update=per_update,
            updates_per_step=updates,
            total_updates=updates * config.num_steps,
            units_per_rank=math.ceil(min(per_update, per_step) / ranks),
            max_tokens_per_step=per_step * (config.data.max_prompt_tokens + rollout.max_new_tokens),
            num_rows=num_rows,
            epochs=config.num_steps * rollout.prompts_per_step / num_rows if num_rows else None,
        )
    steps = config.num_steps or (offline_steps(num_rows, per_update, config.num_epochs) if num_rows else 0)
    return BatchPlan(
        unit="rows",
        num_steps=steps,
        units_per_step=per_update,
        units_per_update=per_update,
        updates_per_step=1,
        total_updates=steps,
        units_per_rank=math.ceil(per_update / ranks),
        max_tokens_per_step=per_update * algorithm.sequences_per_unit * config.data.max_length,
        num_rows=num_rows,
        epochs=steps * per_update / num_rows if num_rows else None,
    )


def offline_steps(num_rows: int, units_per_update: int, num_epochs: int) -> int:
    """Optimizer steps of `num_epochs` passes: the last one may be filled from the next pass."""
    return math.ceil(num_rows * num_epochs / units_per_update)


def run_name(config: RunConfig, now: datetime) -> str:
    """The run's folder name. `auto`: algorithm and time to the second."""
    return f"{config.algorithm.label}-{now:%Y%m%d-%H%M%S}" if config.name == "auto" else config.name


def critic_start(config: RunConfig) -> str:
    """The folder the critic starts from: its own, else the reward model (which has a scalar head already)."""
    return config.critic.model or config.reward.model


def reference_model(config: RunConfig) -> str:
    """The folder of the frozen reference: its own, else where the policy starts."""
    return config.reference.model or config.policy.model


def shares_reference(config: RunConfig) -> bool:
    """True when the policy without its adapters is the reference: no model and no process of its own (online runs)."""
    same_model = not config.reference.model or config.reference.model == config.policy.model
    return config.policy.lora.rank > 0 and same_model and config.reference.precision is config.policy.precision


def lora_description(lora: LoraConfig) -> str:
    """The adapters in words, for plan and model card."""
    stabilised = ", rank-stabilised" if lora.rslora else ""
    where = ", ".join(lora.target_modules) or "all linear layers"
    return f"rank {lora.rank}, alpha {lora.alpha:g}{stabilised}, on {where}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What `auto` is resolved against."""

    now: datetime
    cores: int
    wandb: str  # the mode the environment gives
    wandb_why: str
    checkpoint: str | None  # the newest verified one of the run's folder
    in_ray_job: bool
    demanded_cpus: float  # Ray CPUs all roles ask for together


@dataclass(frozen=True, slots=True)
class Resolved:
    """One setting that was left open and what it becomes."""

    key: str
    given: str
    value: str
    why: str


def resolve(config: RunConfig, needs: Needs, here: Surroundings) -> list[Resolved]:
    """Every setting that was left open (`auto`, 0 or empty, as its doc says) with its value on this machine."""
    found: list[Resolved] = []
    if config.name == "auto":
        found.append(Resolved("name", "auto", run_name(config, here.now), "algorithm and time"))
    if needs.critic and not config.critic.model:
        found.append(Resolved("critic.model", "''", critic_start(config), "reward.model"))
    if needs.reference and not config.reference.model:
        found.append(Resolved("reference.model", "''", reference_model(config), "policy.model"))
    if needs.rollout:
        sequences = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
        found += [Resolved(*row) for row in config.algorithm.left_open(sequences)]
    if needs.shared_reference:
        why = "policy.lora.rank is above 0: no process of its own"
        found.append(Resolved("reference.model", "''", "the policy without its adapters", why))
    if config.tracking.wandb.value == "auto":
        found.append(Resolved("tracking.wandb", "auto", here.wandb, here.wandb_why))
    if config.checkpoint.resume == "auto":
        why = "LATEST of the run's folder" if here.checkpoint else "the run's folder has no checkpoint"
        found.append(Resolved("checkpoint.resume", "auto", here.checkpoint or "from the start", why))
    if config.cluster.address == "local" and here.in_ray_job:
        found.append(Resolved("cluster.address", "local", "auto", "this process is a Ray job and joins its cluster"))
    elif config.cluster.address == "local" and config.cluster.num_cpus == 0:
        cpus = max(here.cores, math.ceil(here.demanded_cpus))
        why = f"{here.cores} cores; the roles ask for {here.demanded_cpus:g}"
        found.append(Resolved("cluster.num_cpus", "0", str(cpus), why))
    return found + _threads(config, needs, here)


def _threads(config: RunConfig, needs: Needs, here: Surroundings) -> list[Resolved]:
    """CPU threads of each process where they were left open, on one machine."""
    open_settings = [("policy.threads_per_rank", config.policy.threads_per_rank, config.policy.num_ranks)]
    if needs.critic:
        open_settings.append(("critic.threads_per_rank", config.critic.threads_per_rank, config.critic.num_ranks))
    if needs.reference:
        reference = config.reference
        open_settings.append(("reference.threads_per_rank", reference.threads_per_rank, reference.num_ranks))
    if needs.reward and config.reward.model:
        reward = config.reward
        open_settings.append(("reward.threads_per_replica", reward.threads_per_replica, reward.num_replicas))
    if needs.rollout:
        rollout = config.rollout
        open_settings.append(("rollout.threads_per_worker", rollout.threads_per_worker, rollout.num_workers))
    return [
        Resolved(key, "0", str(max(1, here.cores // count)), f"{here.cores} cores / {count} on one machine")
        for key, given, count in open_settings
        if given == 0
    ]


def adapters_alone(config: RunConfig) -> bool:
    """Whether publications after the first send adapters without the weights they adapt."""
    if not config.policy.lora.rank or config.cluster.placement is PlacementStrategy.colocated:
        return False
    if config.sync.adapters is AdapterSync.auto:
        return config.cluster.device is Device.cuda
    return config.sync.adapters is AdapterSync.separate
