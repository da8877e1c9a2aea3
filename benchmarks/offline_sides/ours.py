"""Our side: a rank of our learner over DeepSpeed ZeRO, with packed micro-batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.offline_sides.common import (
    BETA,
    DEADLINE_S,
    LR,
    Example,
    Job,
    Outcome,
    PeakMemory,
    examples,
    held_out_examples,
    mismatched,
    steps_of,
)

MICRO_BATCH_TOKENS = {"float32": 1024, "bfloat16": 2048}
"""Gradients are added up once a micro-batch, which counts where products are quick."""


def run(job: Job, rank: int, port: int) -> Outcome:
    """Collective over the job's ranks."""
    from raylign.cluster.pages import KeptPages
    from raylign.cluster.rank import MeetingPoint, RankInfo
    from raylign.conf.schema import Device, LearnerConfig, OptimConfig, Precision
    from raylign.data.batching import shard
    from raylign.trainer.workers.offline_model import objective_of
    from raylign.trainer.workers.specs import PolicySpec, ScalarSpec

    micro_batch_tokens = MICRO_BATCH_TOKENS[job.precision]
    config = LearnerConfig(
        model=job.model, precision=Precision(job.precision), micro_batch_tokens=micro_batch_tokens,
        optim=OptimConfig(lr=LR), num_ranks=job.ranks, zero_stage=zero_stage(job),
    )  # fmt: skip
    spec: Any
    if job.algorithm == "rm":
        spec = ScalarSpec(job.model, config, Device.cpu, job.all_steps, DEADLINE_S, new_head_seed=0)
    else:
        spec = PolicySpec(job.model, config, Device.cpu, job.all_steps, DEADLINE_S)
    import raylign.trainer.engine.zero  # noqa: F401 - a library before the model is measured

    memory, pages = PeakMemory(), KeptPages()
    learner = spec.build(RankInfo("policy", rank, job.ranks), MeetingPoint("127.0.0.1", port))
    memory.loaded(sum(p.numel() * p.element_size() for p in learner.engine.module.parameters()))
    objective, parts = objective_of(algorithm(job.algorithm)), steps_of(job, examples(job))
    references, reference_s, losses, seconds = [], [], [], []
    kept, held_out = held_out_examples(job), []

    def shard_of(rows: Sequence[Example], reference: Sequence[Any], per_update: int) -> Any:
        batch = batch_of(job.algorithm, rows, reference)
        return shard(
            batch, num_ranks=job.ranks, units_per_update=per_update, micro_batch_tokens=micro_batch_tokens, seed=0
        )[rank]

    def look(done: int) -> None:
        if job.looks(done):
            figures = learner.evaluate(shard_of(kept, [], len(kept)), objective)
            held_out.append(figures["accuracy" if job.algorithm == "rm" else "loss"])

    for part in parts:  # before training, as a run does
        started = time.perf_counter()
        references.append(_references(learner, part, job, rank))
        reference_s.append(time.perf_counter() - started)
    look(0)
    for done, (part, reference) in enumerate(zip(parts, references, strict=True), start=1):
        started = time.perf_counter()
        losses.append(learner.update(shard_of(part, reference, job.rows_per_step), objective).metrics["loss"])
        pages.after_step()
        seconds.append(time.perf_counter() - started)
        look(done)
    tokens = sum(row.tokens(job.algorithm) for part in parts[job.warm_up :] for row in part)
    counted = slice(job.warm_up, None)
    return Outcome(
        tokens, sum(seconds[counted]), sum(reference_s[counted]), tuple(losses), memory.peak_gb(), tuple(held_out)
    )


def zero_stage(job: Job) -> int:
    """2, but for one float32 rank: nothing to partition, and ZeRO would keep a second copy of the weights there. In
    bfloat16 stage 2 is what accumulates in float32."""
    return 0 if job.ranks == 1 and job.precision == "float32" else 2


def algorithm(name: str) -> Any:
    """With TRL's own defaults."""
    from raylign.trainer.algorithms.dpo import DPO, DPOConfig
    from raylign.trainer.algorithms.kto import KTO, KTOConfig
    from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
    from raylign.trainer.algorithms.sft import SFT, SFTConfig

    return {
        "sft": SFT(SFTConfig()), "dpo": DPO(DPOConfig(beta=BETA)), "rm": RewardModelling(RMConfig()),
        "kto": KTO(KTOConfig(beta=BETA)),
    }[name]  # fmt: skip


def batch_of(name: str, part: Sequence[Example], references: Sequence[Any]) -> Any:
    """A step's batch; `references` as `_references` gives them."""
    import torch
    from raylign.data.row_batches import JudgedBatch, TextBatch
    from raylign.data.types import PairBatch

    ones = torch.ones(len(part))
    if name == "sft":
        tokens = _tokens([(row.prompt, row.answer) for row in part])
        return TextBatch(tokens, tokens.response_mask.float())
    if name == "kto":
        shown = _tokens([(row.prompt, row.shown) for row in part])
        other = _tokens(_mismatched_rows(part))
        return JudgedBatch(shown, other, torch.tensor([row.good for row in part]), ones, *references)
    tokens = _tokens([(row.prompt, side) for row in part for side in (row.answer, row.worse)])
    return PairBatch(tokens, torch.zeros(len(part)), ones, None, *references)


def _tokens(rows: Sequence[tuple[list[int], list[int]]]) -> Any:
    from raylign.data.types import TokenBatch

    return TokenBatch.from_sequences(
        [prompt + answer for prompt, answer in rows],
        [[False] * len(prompt) + [True] * len(answer) for prompt, answer in rows],
    )


def _mismatched_rows(part: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    return [(row.prompt, ids) for row, ids in zip(part, mismatched(part), strict=True)]


def _references(learner: Any, part: Sequence[Example], job: Job, rank: int) -> list[Any]:
    """The start model's log-probs of a step's answers, a part of the rows on each rank as in a run; a prompt once."""
    if job.algorithm not in ("dpo", "kto"):
        return []
    each = len(part) // job.ranks
    own = slice(rank * each, (rank + 1) * each)
    if job.algorithm == "dpo":
        rows = [(row.prompt, side) for row in part[own] for side in (row.answer, row.worse)]
    else:
        rows = [*((row.prompt, row.shown) for row in part[own]), *_mismatched_rows(part)[own]]
    (found,) = learner.sequence_logprobs([_tokens(rows)])
    together = _all_ranks(found, job.ranks)  # [R, rows of a rank]
    return [together.flatten()] if job.algorithm == "dpo" else [half.flatten() for half in together.split(each, dim=1)]


def _all_ranks(found: Any, ranks: int) -> Any:
    import torch

    if ranks == 1:
        return found[None]
    parts = [torch.empty_like(found) for _ in range(ranks)]
    torch.distributed.all_gather(parts, found)
    return torch.stack(parts)
