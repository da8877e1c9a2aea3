"""TRL's side: its trainers on the same ids. Its preparation of data sets is replaced, nothing that computes.

`trl` runs as its defaults say: padded batches, in bfloat16 by autocast over float32 weights. `trl-best` is the fastest
setting its documentation offers on this hardware: bfloat16 weights without float32 masters, no padding (SFT), reference
log-probs computed beforehand (DPO, KTO).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
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


def run(job: Job, rank: int, port: int) -> Outcome:
    """One rank; accelerate finds the others by the environment."""
    if job.ranks > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

    rows = examples(job)
    half_weights = job.precision == "bfloat16" and job.side == "trl-best"
    dtype = torch.bfloat16 if half_weights else torch.float32
    tokenizer = padding_apart(AutoTokenizer.from_pretrained(job.model))
    import trl.trainer.dpo_trainer
    import trl.trainer.kto_trainer
    import trl.trainer.reward_trainer
    import trl.trainer.sft_trainer  # noqa: F401 - libraries before the model is measured

    memory = PeakMemory()
    if job.algorithm == "rm":
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(job.model, num_labels=1, dtype=dtype)
        model.config.pad_token_id = tokenizer.pad_token_id
        same_head(model, job)
    else:
        model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
    memory.loaded(sum(p.numel() * p.element_size() for p in model.parameters()))
    marks: list[float] = []
    losses: list[float] = []
    kept, held_out = held_out_examples(job), list[float]()

    def look(done: int) -> None:
        if job.looks(done):
            held_out.append(held_out_figure(model, kept, job.algorithm))

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            look(0)

        def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())
            look(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    dataset = _shared(Dataset.from_list(_columns(job, rows)), Path(job.scratch), rank)
    started = time.perf_counter()
    trainer = _trainer(job, model, tokenizer, dataset, f"{job.scratch}/out-{rank}")
    prepared_s = time.perf_counter() - started
    trainer.add_callback(Clock())
    trainer.train()
    parts = steps_of(job, rows)
    seconds = [end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True)]
    precomputed = job.side == "trl-best" and job.algorithm in ("dpo", "kto")
    reference_s = prepared_s * job.steps / job.all_steps if precomputed else 0.0
    tokens = sum(row.tokens(job.algorithm) for part in parts[job.warm_up :] for row in part)
    return Outcome(tokens, sum(seconds[job.warm_up :]), reference_s, tuple(losses), memory.peak_gb(), tuple(held_out))


def _shared(dataset: Any, scratch: Path, rank: int) -> Any:
    """On disk: only there do TRL's ranks find the reference log-probs that the first of them has cached."""
    from datasets import load_from_disk

    if rank == 0:
        dataset.save_to_disk(scratch / "partial")
        (scratch / "partial").rename(scratch / "rows")
    deadline = time.monotonic() + DEADLINE_S
    while not (scratch / "rows").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the first rank has not written its rows within {DEADLINE_S:.0f} s")
        time.sleep(0.1)
    return load_from_disk(scratch / "rows")


def padding_apart(tokenizer: Any) -> Any:
    """With a padding token that ends no text: transformers scores the last token that is no padding."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id and tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def same_head(model: Any, job: Job) -> None:
    """The reward head our side draws, so that losses can be compared."""
    from raylign.trainer.models.scalar_head import init_score

    init_score(model.score.weight, seed=0)


def held_out_figure(model: Any, rows: Sequence[Example], algorithm: str) -> float:
    """By transformers' own forward, row by row: loss a trained token, or the share of pairs ranked rightly."""
    import torch

    def run(ids: list[int]) -> Any:
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()

    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            if algorithm == "rm":
                better, worse = (float(run(row.prompt + answer)) for answer in (row.answer, row.worse))
                total, count = total + float(better > worse), count + 1
            else:
                at = slice(len(row.prompt) - 1, -1)  # what predicts the answer
                log_p = run(row.prompt + row.answer)[at].log_softmax(-1)
                total -= float(log_p.gather(1, torch.tensor(row.answer)[:, None]).sum())
                count += len(row.answer)
    model.train(was_training)
    return total / count


def _columns(job: Job, rows: Sequence[Example]) -> list[dict[str, Any]]:
    if job.algorithm == "sft":
        return [{"input_ids": row.prompt + row.answer, "labels": [-100] * len(row.prompt) + row.answer} for row in rows]
    if job.algorithm == "rm":
        return [{"chosen_ids": row.prompt + row.answer, "rejected_ids": row.prompt + row.worse} for row in rows]
    if job.algorithm == "kto":
        others = [ids for part in steps_of(job, rows) for ids in mismatched(part)]
        return [
            {"prompt_ids": row.prompt, "completion_ids": row.shown, "KL_completion_ids": other, "label": row.good}
            for row, other in zip(rows, others, strict=True)
        ]
    return [{"prompt_ids": row.prompt, "chosen_ids": row.answer, "rejected_ids": row.worse} for row in rows]


def _trainer(job: Job, model: Any, tokenizer: Any, dataset: Any, folder: str) -> Any:
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    best = job.side == "trl-best"
    common = {
        "output_dir": folder, "per_device_train_batch_size": job.rows_per_step // job.ranks, "num_train_epochs": 1,
        "learning_rate": LR, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
        "report_to": [], "use_cpu": True, "gradient_checkpointing": False, "max_length": 1024, "disable_tqdm": True,
        "max_grad_norm": 1.0, "seed": 0, "dataloader_pin_memory": False,
        "bf16": job.precision == "bfloat16" and not best,
    }  # fmt: skip
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "sft": (SFTTrainer, SFTConfig, {"padding_free": True, "max_length": None} if best else {}),
        "dpo": (DPOTrainer, DPOConfig, {"precompute_ref_log_probs": best, "beta": BETA}),
        "rm": (RewardTrainer, RewardConfig, {}),
        "kto": (
            KTOTrainer, KTOConfig,
            {"precompute_ref_log_probs": best, "beta": BETA, "train_sampling_strategy": "sequential"},
        ),
    }  # fmt: skip
    trainer_class, config_class, extra = kinds[job.algorithm]

    class InOrder(trainer_class):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            from torch.utils.data import SequentialSampler

            return SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    args = config_class(**{**common, **extra})
    return InOrder(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
