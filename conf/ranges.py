"""The range every number must lie in, by the last part of its name. Standard library only.

A number whose name is not listed must only be finite: add a line here when a setting has a range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass

from raylign.conf.problems import Problem
from raylign.conf.schema import RunConfig


@dataclass(frozen=True, slots=True)
class Range:
    """`low` to `high`, both allowed unless `above` says that `low` itself is not."""

    low: float
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """True when `value` is in the range."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return low if self.high == math.inf else f"{low} and at most {self.high:g}"


_COUNT = Range(1)
_POSITIVE = Range(0, above=True)
_NOT_NEGATIVE = Range(0)
_FRACTION = Range(0, 1)
_RANGES: Mapping[str, Range] = {
    name: allowed
    for allowed, names in (
        (
            _COUNT,
            (
                "num_ranks",
                "num_workers",
                "num_replicas",
                "ranks_per_replica",
                "tensor_parallel_size",
                "sequence_parallel_size",
                "micro_batch_tokens",
            ),
        ),
        (_COUNT, ("max_model_len", "max_new_tokens", "max_prompt_tokens", "max_length", "max_concurrent")),
        (_COUNT, ("prompts_per_step", "samples_per_prompt", "prompts", "canary_prompts", "keep", "samples_every")),
        (_COUNT, ("environment.max_turns", "environment.processes")),
        (_NOT_NEGATIVE, ("environment.max_turn_tokens", "environment.cpus_per_process")),
        (_NOT_NEGATIVE, ("environment.memory_gb", "environment.max_restarts")),
        (_COUNT, ("bucket_mb", "batch_size", "scoring_chunks")),
        (_COUNT, ("workers", "cpu_s", "processes", "disk_mb", "output_kb")),
        (Range(32), ("memory_mb",)),  # an interpreter that has started has 20
        (Range(16), ("open_files",)),
        (_POSITIVE, ("lr", "eps", "timeout_s", "start_timeout_s", "step_timeout_s", "temperature")),
        (_POSITIVE, ("stall_s", "request_timeout_s", "callback_timeout_s", "kv_cache_gb")),
        (_NOT_NEGATIVE, ("num_steps", "num_epochs", "every", "seed", "weight_decay", "max_grad_norm", "warmup_steps")),
        (_NOT_NEGATIVE, ("cpus_per_rank", "gpus_per_rank", "threads_per_rank", "num_cpus", "object_store_gb")),
        (_NOT_NEGATIVE, ("zero_node_ranks",)),
        (_NOT_NEGATIVE, ("cpus_per_worker", "gpus_per_worker", "threads_per_worker")),
        (_NOT_NEGATIVE, ("cpus_per_replica", "gpus_per_replica", "threads_per_replica")),
        (_NOT_NEGATIVE, ("max_failed_saves", "max_worker_restarts", "max_canary_gap")),
        (_NOT_NEGATIVE, ("clip", "uncertainty_penalty", "truncation_penalty", "overlong_penalty", "overlong_window")),
        (_NOT_NEGATIVE, ("max_batched_tokens", "max_staleness", "max_refills", "max_rebuilds")),
        (_COUNT, ("rollout.autoscale.min_workers", "rollout.autoscale.steps")),
        (_NOT_NEGATIVE, ("rollout.autoscale.max_workers",)),
        (Range(0, 1, above=True), ("rollout.autoscale.wait_share",)),
        (_NOT_NEGATIVE, ("policy.lora.rank", "critic.lora.rank")),
        (_POSITIVE, ("policy.lora.alpha", "critic.lora.alpha")),
        (_NOT_NEGATIVE, ("evaluation.temperature", "evaluation.samples")),  # 0: the most likely token
        (_FRACTION, ("max_failed_fraction", "max_bad_fraction", "max_overlong_fraction")),
        (_NOT_NEGATIVE, ("guard.kl_limit",)),
        (Range(0, 1, above=True), ("guard.entropy_low", "guard.repetition_limit")),
        (Range(1, above=True), ("guard.entropy_high", "guard.length_factor")),
        (Range(0, 1, above=True), ("gpu_memory_utilization", "data.curriculum.min_weight")),
        (_NOT_NEGATIVE, ("data.curriculum.max_draws",)),
        (Range(0, 3), ("zero_stage",)),
    )
    for name in names
}


def check_numbers(config: RunConfig) -> Iterator[Problem]:
    """A problem for each number that is not finite or outside its range."""
    for key, value in _with_elements(leaves(config)):
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        allowed = _RANGES.get(key, _RANGES.get(key.rsplit(".", 1)[-1]))
        if not math.isfinite(value):
            yield Problem((key,), f"{key}={value}: expected a finite number.")
        elif allowed is not None and not allowed.holds(value):
            yield Problem((key,), f"{key}={value:g}: must be {allowed}.")


def _with_elements(found: Iterator[tuple[str, object]]) -> Iterator[tuple[str, object]]:
    """Settings in lists of sections too, as `reward.functions[0].timeout_s`."""
    for key, value in found:
        if isinstance(value, list) and value and is_dataclass(value[0]):
            for number, element in enumerate(value):
                yield from leaves(element, f"{key}[{number}].")
        else:
            yield key, value


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every setting of a dataclass tree by its full dotted name."""
    assert is_dataclass(config)
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value
