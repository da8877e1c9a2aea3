"""A run of TRL's trainers as their documentation shows it, for benchmarks/trl_parity.py.

    python -m benchmarks.offline_sides.trl_run ALGORITHM MODEL ROWS LOSSES STEPS ROWS_PER_STEP LR PRECISION

Set apart from their defaults: the precision, file order, a constant rate, no length limit, and for KTO whose answer a
prompt is paired with to measure the KL. TRL pairs it with the row before within its batch; we pair it with the next row
that asks something else, fixed by the rows alone. Ours is put into the column that TRL's preparation has made; nothing
that computes is replaced.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

BETA = 0.1


def next_answers(prepared: Any) -> list[list[int]]:
    """For each row the answer of the next one with another prompt, around the end."""
    prompts, answers = list(prepared["prompt_ids"]), list(prepared["completion_ids"])
    size, found = len(prompts), []
    for i in range(size):
        after = [(i + k) % size for k in range(1, size)]
        found.append(answers[next(j for j in after if prompts[j] != prompts[i])])
    return found


def trainer_of(algorithm: str, model: str, precision: str, dataset: Any, common: dict[str, Any]) -> Any:
    """Ready to train."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import (
        DPOConfig,
        DPOTrainer,
        KTOConfig,
        KTOTrainer,
        RewardConfig,
        RewardTrainer,
        SFTConfig,
        SFTTrainer,
    )  # fmt: skip

    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "sft": (SFTTrainer, SFTConfig, {}),
        "rm": (RewardTrainer, RewardConfig, {}),
        "dpo": (DPOTrainer, DPOConfig, {"beta": BETA}),
        "kto": (KTOTrainer, KTOConfig, {"beta": BETA}),
    }
    trainer_class, config_class, extra = kinds[algorithm]
    auto = AutoModelForSequenceClassification if algorithm == "rm" else AutoModelForCausalLM
    loaded = auto.from_pretrained(model, dtype=getattr(torch, precision))
    trainer = trainer_class(
        model=loaded, args=config_class(**{**common, **extra}), train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model),
    )  # fmt: skip
    if algorithm == "kto":
        prepared = trainer.train_dataset
        paired = prepared.remove_columns("KL_completion_ids").add_column("KL_completion_ids", next_answers(prepared))
        trainer.train_dataset = paired
    return trainer


def main() -> None:
    """Train and write the loss of every step."""
    from datasets import Dataset

    algorithm, model, rows, losses, steps, rows_per_step, lr, precision = sys.argv[1:]
    read = [json.loads(line) for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder, "per_device_train_batch_size": int(rows_per_step), "max_steps": int(steps),
            "learning_rate": float(lr), "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
            "report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": None,
            "train_sampling_strategy": "sequential", "disable_tqdm": True, "dataloader_pin_memory": False,
        }  # fmt: skip
        trainer = trainer_of(algorithm, model, precision, Dataset.from_list(read), common)
        trainer.train()
        found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    Path(losses).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
