"""One learner's step on pairs (DPO) and on groups (GRPO): prompts that are shared against prompts that are not.

    python benchmarks/shared_prompts.py --model FOLDER --rows FILE [--pairs 4] [--json out.json]

`--rows`: GSM8K's `question`, `answer` as JSONL. `dpo`: 4 pairs, an answer against the next row's. `grpo`: 4 prompts of
80 tokens with 8 answers of 64. The other side of the comparison has the same rows with another first token in every
sequence, so that nothing is shared: as many tokens, each computed for itself. Both sides run in one process by turns,
DeepSpeed ZeRO 2, one rank, gradients and the optimizer's step included; the first step of each (it warms caches up) is
not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device
from rich.console import Console
from rich.table import Table

MICRO_BATCH_TOKENS = 2048
PROMPT, ANSWER, SAMPLES = 80, 64, 8


@dataclass(frozen=True, slots=True)
class Case:
    """One process's work."""

    kind: str  # dpo or grpo
    precision: str
    model: str
    rows: str
    pairs: int  # of steps: one that shares, one that does not


@dataclass(frozen=True, slots=True)
class Side:
    """What one side of the comparison measured."""

    computed: int  # tokens that went through the model
    micro_batches: int
    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Of a step."""
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Both sides of a case."""

    case: Case
    tokens: int  # of a step, every sequence with its prompt
    shared: Side
    apart: Side

    @property
    def ratios(self) -> list[float]:
        """Seconds apart over seconds shared, step by step."""
        return [b / a for a, b in zip(self.shared.seconds, self.apart.seconds, strict=True)]


def texts(case: Case) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer ids of the first rows, in file order."""
    from raylign.data.encoder import Encoder
    from raylign.data.tokenize import load_tokenizer

    encoder = Encoder(load_tokenizer(case.model))
    found = []
    with Path(case.rows).open(encoding="utf-8") as file:
        for _, line in zip(range(200), file, strict=False):
            row = json.loads(line)
            encoded = encoder.encode_answer(row["question"], row["answer"])
            ids, cut = list(encoded.token_ids), encoded.prompt_tokens
            found.append((ids[:cut], ids[cut:]))
    return found


def pair_step(case: Case) -> tuple[Any, Any]:
    """Pairs, and DPO with a reference that finds all answers equally likely."""
    import torch
    from raylign.data.types import PairBatch
    from raylign.trainer.algorithms.dpo import DPO, DPOConfig
    from raylign.trainer.workers.offline_model import objective_of

    rows = [(prompt, side) for (prompt, good), (_, bad) in pairwise(texts(case)[:5]) for side in (good, bad)]
    batch = PairBatch(_tokens(rows), torch.zeros(4), torch.ones(4), ref_logps=torch.zeros(8))
    return batch, objective_of(DPO(DPOConfig(beta=0.1)))


def group_step(case: Case) -> tuple[Any, Any]:
    """Sampled groups, and GRPO."""
    import torch
    from raylign.data.types import PolicyExperience
    from raylign.trainer.algorithms.grpo import GRPO, GRPOConfig
    from raylign.trainer.workers.policy import PolicyObjective

    rows = [text for text in texts(case) if len(text[0]) >= PROMPT and len(text[1]) >= ANSWER]
    answers = iter([answer[:ANSWER] for _, answer in rows])
    tokens = _tokens([(prompt[-PROMPT:], next(answers)) for prompt, _ in rows[:4] for _ in range(SAMPLES)])
    drawn = torch.randn(tokens.num_tokens, generator=torch.Generator().manual_seed(0))
    old = -2.0 * tokens.response_mask
    batch = PolicyExperience(tokens, old, old, old, drawn * tokens.response_mask)
    return batch, PolicyObjective(GRPO(GRPOConfig()), kl_coef=0.01, temperature=1.0, entropy_gradient=False)


def _tokens(rows: Sequence[tuple[list[int], list[int]]]) -> Any:
    from raylign.data.types import TokenBatch

    masks = [[False] * len(prompt) + [True] * len(answer) for prompt, answer in rows]
    return TokenBatch.from_sequences([prompt + answer for prompt, answer in rows], masks)


def apart(batch: Any) -> Any:
    """The same with a first token of its own for every sequence."""
    tokens = batch.tokens
    ids = tokens.input_ids.clone()
    ids[tokens.cu_seqlens[:-1].long()] = 1000 + ids.new_tensor(range(tokens.num_sequences))
    return replace(batch, tokens=replace(tokens, input_ids=ids))


def run(case: Case) -> Outcome:
    """In a fresh process."""
    from raylign.cluster.rank import MeetingPoint, RankInfo
    from raylign.conf.schema import LearnerConfig, OptimConfig, Precision
    from raylign.data.batching import shard
    from raylign.trainer.engine.rendezvous import listen
    from raylign.trainer.functional.packing import pack
    from raylign.trainer.workers.specs import PolicySpec

    precision, optim = Precision(case.precision), OptimConfig(lr=1e-6)
    config = LearnerConfig(model=case.model, precision=precision, micro_batch_tokens=MICRO_BATCH_TOKENS, optim=optim)
    together, objective = pair_step(case) if case.kind == "dpo" else group_step(case)
    spec = PolicySpec(case.model, config, Device.cpu, 2 * case.pairs + 2, 600.0)
    learner = spec.build(RankInfo("policy", 0, 1), MeetingPoint("127.0.0.1", listen("127.0.0.1")))
    sides = []
    for batch in (together, apart(together)):
        (one,) = shard(batch, num_ranks=1, units_per_update=999, micro_batch_tokens=MICRO_BATCH_TOKENS, seed=0)
        sides.append(one)
    seconds: list[list[float]] = [[], []]
    for _ in range(case.pairs + 1):
        for i, one in enumerate(sides):
            started = time.perf_counter()
            learner.update(one, objective)
            seconds[i].append(time.perf_counter() - started)
    measured = []
    for one, taken in zip(sides, seconds, strict=True):
        micro_batches = one.windows[0].micro_batches
        computed = sum(pack(micro_batch.tokens).tokens.numel() for micro_batch in micro_batches)
        measured.append(Side(computed, len(micro_batches), tuple(taken[1:])))
    return Outcome(case, together.tokens.num_tokens, *measured)


def in_process(case: Case) -> Outcome:
    """In a child with a learner's environment."""
    os.environ.update(RoleEnv(Device.cpu, os.cpu_count() or 1, keeps_pages=True, own_cores=True).variables())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (case,))


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--kinds", nargs="+", default=["dpo", "grpo"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = Table("step", "tokens", "computed", "passes", "shared s", "apart s", "times as fast", "range")
    outcomes = []
    for kind in given.kinds:
        for precision in given.precisions:
            found = in_process(Case(kind, precision, given.model, given.rows, given.pairs))
            outcomes.append(asdict(found))
            table.add_row(
                f"{kind} {precision}", str(found.tokens), str(found.shared.computed),
                f"{found.shared.micro_batches} / {found.apart.micro_batches}",
                f"{found.shared.median_s:.2f}", f"{found.apart.median_s:.2f}",
                f"{statistics.median(found.ratios):.2f}", f"{min(found.ratios):.2f}-{max(found.ratios):.2f}",
            )  # fmt: skip
    Console(width=120).print(table)
    if given.json:
        given.json.write_text(json.dumps(outcomes, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
