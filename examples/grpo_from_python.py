"""GRPO from Python: a CSV file with columns of one's own, a reward function of one's own, and what the run left behind.

python examples/grpo_from_python.py MODEL_FOLDER [STEPS]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import raylign

HERE = Path(__file__).resolve().parent


def main(model: str, steps: int) -> None:
    """Write the prompts, train, and show how the reward moved."""
    questions = Path("questions.csv")
    with questions.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "length"])
        rows.writerows([f"Say something about the number {n}.", 20 + n] for n in range(32))

    run = raylign.compose(
        [
            "+experiment=grpo_tiny_cpu",
            f"policy.model={model}",
            f"data.train={questions}",
            "data.columns={prompt: question}",
            f"reward.functions=[{{path: '{HERE / 'my_reward.py'}:close_to_wish'}}]",
            f"num_steps={steps}",
            "name=from-python",
        ]
    )
    print(raylign.plan(run))
    folder = raylign.train(run)

    rewards = raylign.load_metrics(folder).series("reward/mean")
    print("reward by step:", ", ".join(f"{step}: {value:.3f}" for step, value in rewards if value is not None))
    best = max(raylign.load_samples(folder), key=lambda sample: sample.reward or 0.0)
    print(f"best answer of the last step ({best.reward:.3f}) to {best.prompt!r}: {best.response!r}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4)
    except raylign.RaylignError as error:
        sys.exit("\n".join(error.problems))
