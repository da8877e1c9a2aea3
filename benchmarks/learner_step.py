"""One learner's step where prompts are shared and where they are not: DPO on pairs, GRPO on groups, and single answers.

    python benchmarks/learner_step.py --model FOLDER --rows FILE [--steps 4] [--json out.json]

`--rows`: GSM8K's `question`, `answer` as JSONL. `dpo`: 4 pairs, an answer against the next row's. `grpo`: 4 prompts of
80 tokens with 8 answers of 64. `alone`: 16 different prompts of 80 tokens with one answer of 64 each, so nothing can be
shared. Tokens count every sequence with its own prompt, whether it is computed again or not. Gradients and the
optimizer's step are included; the first step (it warms caches up) is not counted. Each case runs in its own process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from rich.console import Console
from rich.table import Table

from cluster.runtime_env import RoleEnv
from conf.schema import Device

MICRO_BATCH_TOKENS = 2048
PROMPT, ANSWER = 80, 64


@dataclass(frozen=True, slots=True)
class Case:
    """One process's work."""

    kind: str  # dpo, grpo or alone
    precision: str
    model: str
    rows: str
    steps: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one process measured, its first step left out."""

    case: Case
    tokens: int  # of one step, each sequence with its prompt
    micro_batches: int  # of one step
    seconds: float  # of the median step
    fastest_s: float
    losses: tuple[float, ...]
    memory_gb: float  # peak of the process


def texts(case: Case) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer ids of every row, in file order."""
    from data.tokenize import Encoder, load_tokenizer

    encoder = Encoder(load_tokenizer(case.model))
    found = []
    with Path(case.rows).open(encoding="utf-8") as file:
        for _, line in zip(range(200), file, strict=False):
            row = json.loads(line)
            encoded = encoder.encode_answer(row["question"], row["answer"])
            ids, cut = list(encoded.token_ids), encoded.prompt_tokens
            found.append((ids[:cut], ids[cut:]))
    return found


def pairs(case: Case) -> tuple[Any, Any]:
    """4 pairs and DPO's objective; a reference that finds all answers equally likely."""
    import torch

    from data.types import PairBatch
    from trainer.algorithms.dpo import DPO, DPOConfig
    from trainer.workers.offline_model import objective_of

    rows = texts(case)[:5]
    sides = [(prompt, side) for (prompt, good), (_, bad) in pairwise(rows) for side in (good, bad)]
    batch = PairBatch(_tokens(sides), torch.zeros(4), torch.ones(4), ref_logps=torch.zeros(8))
    return batch, objective_of(DPO(DPOConfig(beta=0.1)))


def groups(case: Case) -> tuple[Any, Any]:
    """Sampled groups and GRPO's objective."""
    import torch

    from data.types import PolicyExperience
    from trainer.algorithms.grpo import GRPO, GRPOConfig
    from trainer.workers.policy import PolicyObjective

    num_prompts, samples = (4, 8) if case.kind == "grpo" else (16, 1)
    rows = [text for text in texts(case) if len(text[0]) >= PROMPT and len(text[1]) >= ANSWER]
    prompts = [prompt[-PROMPT:] for prompt, _ in rows[:num_prompts]]
    answers = iter([answer[:ANSWER] for _, answer in rows])
    tokens = _tokens([(prompt, next(answers)) for prompt in prompts for _ in range(samples)])
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(tokens.num_tokens, generator=generator) * tokens.response_mask
    old = -2.0 * tokens.response_mask
    batch = PolicyExperience(tokens, old, old, old, advantages)
    return batch, PolicyObjective(GRPO(GRPOConfig()), kl_coef=0.01, temperature=1.0, entropy_gradient=False)


def _tokens(rows: list[tuple[list[int], list[int]]]) -> Any:
    from data.types import TokenBatch

    return TokenBatch.from_sequences(
        [p + a for p, a in rows], [[False] * len(p) + [True] * len(a) for p, a in rows]
    )  # fmt: skip


def run(case: Case) -> Outcome:
    """In a fresh process: DeepSpeed ZeRO 2, one rank."""
    import resource

    from cluster.rank import RankInfo, free_meeting_point
    from conf.schema import LearnerConfig, OptimConfig, Precision
    from data.batching import shard
    from trainer.workers.specs import PolicySpec

    config = LearnerConfig(
        model=case.model, precision=Precision(case.precision), micro_batch_tokens=MICRO_BATCH_TOKENS,
        optim=OptimConfig(lr=1e-6),
    )  # fmt: skip
    batch, objective = pairs(case) if case.kind == "dpo" else groups(case)
    learner = PolicySpec(case.model, config, Device.cpu, case.steps + 1, 600.0).build(
        RankInfo("policy", 0, 1), free_meeting_point()
    )
    losses, seconds = [], []
    for _ in range(case.steps + 1):
        started = time.perf_counter()
        (one,) = shard(batch, num_ranks=1, units_per_update=999, micro_batch_tokens=MICRO_BATCH_TOKENS, seed=0)
        losses.append(learner.update(one, objective).metrics["loss"])
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    counted = seconds[1:]
    return Outcome(
        case, batch.tokens.num_tokens, len(one.windows[0].micro_batches), statistics.median(counted), min(counted),
        tuple(losses), peak,
    )  # fmt: skip


def in_process(case: Case) -> Outcome:
    """In a child with a learner's environment."""
    os.environ.update(RoleEnv(Device.cpu, os.cpu_count() or 1).variables())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (case,))


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--kinds", nargs="+", default=["dpo", "grpo", "alone"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = Table("step", "tokens", "micro-batches", "median s", "fastest s", "tokens/s", "memory GB", "first loss")
    outcomes = []
    for kind in given.kinds:
        for precision in given.precisions:
            found = in_process(Case(kind, precision, given.model, given.rows, given.steps))
            outcomes.append(asdict(found))
            table.add_row(
                f"{kind} {precision}", str(found.tokens), str(found.micro_batches), f"{found.seconds:.2f}",
                f"{found.fastest_s:.2f}", f"{found.tokens / found.seconds:.0f}", f"{found.memory_gb:.1f}",
                f"{found.losses[0]:.6f}",
            )  # fmt: skip
    Console(width=120).print(table)
    if given.json:
        given.json.write_text(json.dumps(outcomes, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
