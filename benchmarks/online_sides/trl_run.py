"""A run of TRL's GRPOTrainer or RLOOTrainer, for benchmarks/online_vs_trl.py.

    python -m benchmarks.online_sides.trl_run JSON

`JSON` is an online_vs_trl.Job as text. Writes the seconds between the ends of steps, and the tokens of each, to `told`.
Settings: one update a step over all answers, our learning rate and KL coefficient, a constant rate, nothing logged or
saved while it trains, the model itself at the end. `trl` is otherwise TRL as it comes; `trl-best` keeps activations,
which its default of gradient checkpointing does not; `trl-batching` also generates by continuous batching and
`trl-vllm` by vLLM in its own process (TRL 1.16 names 0.22 to 0.31 as supported and warns of ours).
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any


def near_target(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The rule `length_target:32`, by token ids."""
    return [max(0.0, 1 - abs(len(ids) - 32) / 32) for ids in completion_ids]


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """Of GRPOConfig and RLOOConfig."""
    answers = job["prompts"] * job["samples"]
    own: dict[str, Any] = {} if job["side"] == "trl" else {"gradient_checkpointing": False}
    if job["side"] == "trl-batching":
        own["use_transformers_continuous_batching"] = True
    if job["side"] == "trl-vllm":
        own |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 320}
        own |= {"vllm_gpu_memory_utilization": 0.1}  # of the machine's memory, on CPU
    return own | {
        "output_dir": job["scratch"], "per_device_train_batch_size": answers, "gradient_accumulation_steps": 1,
        "num_generations": job["samples"], "max_completion_length": job["answer_tokens"], "max_steps": job["steps"],
        "learning_rate": job["lr"], "lr_scheduler_type": "constant", "beta": job["kl_coef"], "temperature": 1.0,
        "model_init_kwargs": {"dtype": job["precision"]}, "bf16": False, "use_cpu": True, "report_to": [],
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "shuffle_dataset": False,
        "dataloader_pin_memory": False,
    }  # fmt: skip


def main() -> None:
    """Train and tell."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    job = json.loads(sys.argv[1])
    kinds: dict[str, tuple[Any, Any]] = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
    trainer_class, config_class = kinds[job["algorithm"]]
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    asked = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    trainer = trainer_class(
        model=job["model"], reward_funcs=near_target, args=config_class(**settings(job)),
        train_dataset=Dataset.from_list(asked), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(job["scratch"] + "/model")
    counted = [row["num_tokens"] for row in trainer.state.log_history if "num_tokens" in row]
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "num_tokens" in row]
    told = {
        "steps_s": [after - before for before, after in itertools.pairwise(ends)],
        "tokens": [after - before for before, after in itertools.pairwise([0, *counted])],
        "answer_tokens": lengths,
    }
    Path(job["told"]).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
