"""SFT, DPO and reward-model training against TRL: same machine, rows, token ids, order, precision and learning rate.

    python benchmarks/offline_vs_trl.py --model FOLDER --rows FILE [--steps 3] [--pairs 3] [--json out.json]

`--rows`: GSM8K's `question`, `answer` as JSONL. Each side trains in its own process, sides alternate. Tokens are those
that are no padding; optimizer steps are included, the first step (it warms caches up) is not counted. Losses of every
step are compared; a pair of runs whose losses differ by more than `LOSS_TOLERANCE` is void. TRL runs as it comes and at
the best setting its documentation offers: packing for SFT, reference log-probs computed beforehand for DPO.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from rich.console import Console
from rich.table import Table

from cluster.runtime_env import RoleEnv
from conf.schema import Device

LOSS_TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}
ROWS_PER_STEP = {"sft": 8, "dpo": 4, "rm": 4}
LR = 1e-5


@dataclass(frozen=True, slots=True)
class Job:
    """One process's work."""

    side: str  # ours, trl or trl-best
    algorithm: str
    precision: str
    model: str
    rows: str
    steps: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one process measured, its first step left out."""

    tokens: int
    seconds: float
    losses: tuple[float, ...]
    memory_gb: float  # peak above the process with the model loaded

    @property
    def tokens_per_s(self) -> float:
        """Non-padding tokens."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Example:
    """Ids of a prompt and its answers, the second only for pairs."""

    prompt: list[int]
    answer: list[int]
    worse: list[int]

    def tokens(self, algorithm: str) -> int:
        """Non-padding tokens of one row, each side of a pair with its prompt."""
        one = len(self.prompt) + len(self.answer)
        return one if algorithm == "sft" else one + len(self.prompt) + len(self.worse)


def examples(job: Job) -> list[Example]:
    """Rows in file order, tokenised once by our encoder. The worse answer is the next row's."""
    from data.tokenize import Encoder, load_tokenizer

    encoder = Encoder(load_tokenizer(job.model))
    count = ROWS_PER_STEP[job.algorithm] * (job.steps + 1)
    with Path(job.rows).open(encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(count + 1), file, strict=False)]
    found = []
    for row, other in pairwise(rows):
        good, bad = (encoder.encode_answer(row["question"], r["answer"]) for r in (row, other))
        cut = good.prompt_tokens
        found.append(Example(list(good.token_ids[:cut]), list(good.token_ids[cut:]), list(bad.token_ids[cut:])))
    return found


def run_ours(job: Job) -> Outcome:
    """Our learner, one rank, DeepSpeed ZeRO, packed micro-batches."""
    from cluster.rank import RankInfo, free_meeting_point
    from conf.schema import LearnerConfig, OptimConfig, Precision
    from data.batching import shard
    from trainer.workers.offline_model import objective_of
    from trainer.workers.specs import PolicySpec, ScalarSpec

    config = LearnerConfig(
        model=job.model, precision=Precision(job.precision), micro_batch_tokens=2048, optim=OptimConfig(lr=LR)
    )
    spec: Any
    if job.algorithm == "rm":
        spec = ScalarSpec(job.model, config, Device.cpu, job.steps + 1, 600.0, new_head_seed=0)
    else:
        spec = PolicySpec(job.model, config, Device.cpu, job.steps + 1, 600.0)
    learner = spec.build(RankInfo("policy", 0, 1), free_meeting_point())
    loaded, rows, per_step = _rss_gb(), examples(job), ROWS_PER_STEP[job.algorithm]
    objective = objective_of(_algorithm(job.algorithm))
    parts = [rows[i : i + per_step] for i in range(0, len(rows), per_step)]
    references = [_reference(learner, part) if job.algorithm == "dpo" else None for part in parts]
    losses, seconds = [], []
    for part, reference in zip(parts, references, strict=True):
        started = time.perf_counter()
        batch = _batch(job.algorithm, part, reference)
        shards = shard(batch, num_ranks=1, units_per_update=per_step, micro_batch_tokens=2048, seed=0)
        losses.append(learner.update(shards[0], objective).metrics["loss"])
        seconds.append(time.perf_counter() - started)
    return _outcome(job, parts, losses, seconds, loaded)


def _algorithm(name: str) -> Any:
    from trainer.algorithms.dpo import DPO, DPOConfig
    from trainer.algorithms.rm import RewardModelling, RMConfig
    from trainer.algorithms.sft import SFT, SFTConfig

    return {
        "sft": SFT(SFTConfig()), "dpo": DPO(DPOConfig(beta=0.1)), "rm": RewardModelling(RMConfig())
    }[name]  # fmt: skip


def _batch(algorithm: str, part: Sequence[Example], reference: Any) -> Any:
    import torch

    from data.row_batches import TextBatch
    from data.types import PairBatch, TokenBatch

    if algorithm == "sft":
        tokens = TokenBatch.from_sequences(
            [e.prompt + e.answer for e in part], [[False] * len(e.prompt) + [True] * len(e.answer) for e in part]
        )
        return TextBatch(tokens, tokens.response_mask.float())
    sides = [(e.prompt, side) for e in part for side in (e.answer, e.worse)]
    tokens = TokenBatch.from_sequences(
        [p + side for p, side in sides], [[False] * len(p) + [True] * len(side) for p, side in sides]
    )
    ones = torch.ones(len(part))
    return PairBatch(tokens, torch.zeros(len(part)), ones, ref_logps=reference)


def _reference(learner: Any, part: Sequence[Example]) -> Any:
    """The start model's own answers' log-probs: once, before training, as a run does; not counted for either side."""
    from trainer.functional.segments import sequence_sum

    batch = _batch("dpo", part, None)
    return sequence_sum(learner.logprobs([batch.tokens], temperature=1.0)[0], batch.tokens)


def run_trl(job: Job) -> Outcome:
    """TRL's trainer on the same ids; its dataset preparation is replaced, nothing that computes."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

    torch.set_num_threads(os.cpu_count() or 1)
    rows, per_step = examples(job), ROWS_PER_STEP[job.algorithm]
    dtype = getattr(torch, job.precision)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    if job.algorithm == "rm":
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(job.model, num_labels=1, dtype=dtype)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
    loaded = _rss_gb()
    marks: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    with tempfile.TemporaryDirectory() as folder:
        trainer = _trl_trainer(job, model, tokenizer, Dataset.from_list(_columns(job, rows)), folder)
        trainer.add_callback(Clock())
        trainer.train()
    parts = [rows[i : i + per_step] for i in range(0, len(rows), per_step)]
    seconds = [end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True)]
    return _outcome(job, parts, losses, seconds, loaded)


def _columns(job: Job, rows: Sequence[Example]) -> list[dict[str, Any]]:
    if job.algorithm == "sft":
        return [
            {
                "input_ids": e.prompt + e.answer,
                "completion_mask": [0] * len(e.prompt) + [1] * len(e.answer),
            }
            for e in rows
        ]
    if job.algorithm == "rm":
        return [{"chosen_ids": e.prompt + e.answer, "rejected_ids": e.prompt + e.worse} for e in rows]
    return [{"prompt_ids": e.prompt, "chosen_ids": e.answer, "rejected_ids": e.worse} for e in rows]


def _trl_trainer(job: Job, model: Any, tokenizer: Any, dataset: Any, folder: str) -> Any:
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    best = job.side == "trl-best"
    common = {
        "output_dir": folder, "per_device_train_batch_size": ROWS_PER_STEP[job.algorithm], "num_train_epochs": 1,
        "learning_rate": LR, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
        "report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": 1024,
        "disable_tqdm": True, "max_grad_norm": 1.0, "seed": 0, "dataloader_pin_memory": False,
    }  # fmt: skip
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "sft": (SFTTrainer, SFTConfig, {"padding_free": best}),
        "dpo": (DPOTrainer, DPOConfig, {"precompute_ref_log_probs": best, "beta": 0.1}),
        "rm": (RewardTrainer, RewardConfig, {}),
    }
    trainer_class, config_class, extra = kinds[job.algorithm]

    class InOrder(trainer_class):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            from torch.utils.data import SequentialSampler

            return SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    return InOrder(model=model, args=config_class(**common, **extra), train_dataset=dataset, processing_class=tokenizer)


def _outcome(
    job: Job, parts: Sequence[Sequence[Example]], losses: Sequence[float], seconds: Sequence[float], loaded: float
) -> Outcome:
    tokens = sum(e.tokens(job.algorithm) for part in parts[1:] for e in part)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return Outcome(tokens, sum(seconds[1:]), tuple(losses), peak - loaded)


def _rss_gb() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 1e9


def run_job(job: Job) -> Outcome:
    """In a fresh process."""
    return run_ours(job) if job.side == "ours" else run_trl(job)


def in_process(job: Job) -> Outcome:
    """Runs the job in a child; our side gets a learner's environment, TRL's the machine's own."""
    keys = RoleEnv(Device.cpu, os.cpu_count() or 1).variables() if job.side == "ours" else {}
    before = {key: os.environ.get(key) for key in keys}
    os.environ.update(keys)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(run_job, (job,))
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value


def gap(ours: Outcome, theirs: Outcome) -> float:
    """Largest relative difference of two runs' losses, step by step."""
    return max(abs(a - b) / max(abs(b), 1e-3) for a, b in zip(ours.losses, theirs.losses, strict=True))


def main() -> int:
    """Measure, print the table, write the JSON; 1 when a comparison is void."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--algorithms", nargs="+", default=["sft", "dpo", "rm"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = Table("run", "ours tok/s", "TRL", "TRL best", "x best", "memory GB", "TRL best GB", "loss gap")
    report, void = [], False
    for algorithm in given.algorithms:
        for precision in given.precisions:
            sides = ("ours", "trl", "trl-best") if algorithm != "rm" else ("ours", "trl")
            jobs = {s: Job(s, algorithm, precision, given.model, given.rows, given.steps) for s in sides}
            runs = [{side: in_process(job) for side, job in jobs.items()} for _ in range(given.pairs)]
            speed = {side: statistics.median(run[side].tokens_per_s for run in runs) for side in sides}
            memory = {side: statistics.median(run[side].memory_gb for run in runs) for side in sides}
            best = max((side for side in sides if side != "ours"), key=speed.__getitem__)
            # TRL keeps bfloat16 weights without float32 masters, so its later steps drift: the first step decides there
            difference = max(gap(run["ours"], run["trl"]) for run in runs)
            void |= difference > LOSS_TOLERANCE[precision]
            ratio = speed["ours"] / speed[best]
            shown = [speed["ours"], speed["trl"], speed.get("trl-best", speed["trl"]), ratio]
            table.add_row(
                f"{algorithm} {precision}", *(f"{x:.1f}" for x in shown),
                f"{memory['ours']:.1f}", f"{memory[best]:.1f}", f"{difference:.1e}",
            )  # fmt: skip
            report.append({"algorithm": algorithm, "precision": precision, "runs": [
                {side: asdict(outcome) for side, outcome in run.items()} for run in runs
            ], "ratio_to_best": ratio, "loss_gap": difference})  # fmt: skip
    Console().print(table)
    if void:
        Console().print("void: losses differ by more than the tolerance")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(void)


if __name__ == "__main__":
    sys.exit(main())
