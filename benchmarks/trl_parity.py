"""Whole runs against TRL: the same rows and model folder through `raylign train` and through TRL's trainers.

    python -m benchmarks.trl_parity [--model FOLDER] [--questions FILE] [--solutions FILE] [--form plain chat]
                                    [--algorithms sft rm dpo kto] [--steps 20] [--rows 4] [--lr 1e-5]
                                    [--trl-precision float32] [--json FILE]

Each side reads the rows from disk, makes tokens of them itself and trains in float32 in a process of its own; the loss
of every step is compared. `plain`: the model has no chat template and rows are text; `chat`: its template ends a turn
with the end token and nothing after it. (After ChatML TRL trains the line break behind the end token, which sampling
never gives and we do not train.) What is given to TRL that its defaults do not say: offline_sides/trl_run.py. Without
files: generated sums; without a model: a random one of two layers. Whose rounding a difference of DPO is:
benchmarks/pair_truth.py. (TRL adds up an answer's log-probs in float32, which at 2,000 nats is right to 1e-4.)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ALGORITHMS = ("sft", "rm", "dpo", "kto")
LIMIT = 1e-5
"""Relative difference of two losses that is rounding."""
BETAS = (0.9, 0.999)  # TRL's
DEADLINE_S = 3600.0
TURN = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Parity:
    """The losses of both sides, step by step."""

    algorithm: str
    form: str
    ours: tuple[float, ...]
    trl: tuple[float, ...]

    @property
    def gaps(self) -> list[float]:
        """Relative differences."""
        return [abs(mine - theirs) / abs(theirs) for mine, theirs in zip(self.ours, self.trl, strict=True)]

    @property
    def same(self) -> bool:
        """At every step."""
        return max(self.gaps) <= LIMIT


def model_folders(source: Path, target: Path, form: str) -> dict[str, Path]:
    """The model with the form's template, as a causal model and with a reward head that both sides start from.

    Its padding token is one that ends no text: transformers scores the last token that is not padding.
    """
    import torch
    from raylign.trainer.models.scalar_head import init_score
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.chat_template = TURN if form == "chat" else None
    found = {}
    for head, auto in (("causal", AutoModelForCausalLM), ("scalar", AutoModelForSequenceClassification)):
        labels = {"num_labels": 1} if head == "scalar" else {}
        model = auto.from_pretrained(source, dtype=torch.float32, **labels)
        model.config.pad_token_id = tokenizer.pad_token_id
        if head == "scalar":
            init_score(model.score.weight, seed=0)
        found[head] = target / head
        model.save_pretrained(found[head])
        tokenizer.save_pretrained(found[head])
    return found


def solved(questions: Path | None, solutions: Path | None, count: int) -> tuple[list[Any], list[Any]]:
    """Questions with a worked answer, and questions with a right and a wrong one: GSM8K's files, or sums."""
    if questions is None:
        worked = [(f"What is {i} + {7 * i}?", f"{i} + {7 * i} is {8 * i}. " * (1 + i % 4)) for i in range(count)]
    else:
        with questions.open(encoding="utf-8") as file:
            read = [json.loads(line) for line in islice(file, count)]
        worked = [(row["question"], row["answer"]) for row in read]
    if solutions is None:
        judged = [(f"What is {i} + 5?", f"It is {i + 5}.", f"{i} and 5 are {i + 6} or so.") for i in range(count)]
    else:
        judged = list(islice(_right_and_wrong(solutions), count))
    return worked, judged


def _right_and_wrong(solutions: Path) -> Iterator[tuple[str, str, str]]:
    with solutions.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            answers = [value for value in row.values() if isinstance(value, dict) and "is_correct" in value]
            right = [answer["solution"] for answer in answers if answer["is_correct"]]
            wrong = [answer["solution"] for answer in answers if not answer["is_correct"]]
            if right and wrong:
                yield row["question"], right[0], wrong[0]


def rows_of(algorithm: str, form: str, worked: Sequence[Any], judged: Sequence[Any]) -> list[dict[str, Any]]:
    """In TRL's columns, which are ours too."""
    chat = form == "chat"

    def asked(question: str) -> object:
        return [{"role": "user", "content": question}] if chat else f"Question: {question}\nAnswer:"

    def said(answer: str) -> object:
        return [{"role": "assistant", "content": answer.strip()}] if chat else f" {answer.strip()}"

    if algorithm == "sft":
        return [{"prompt": asked(question), "completion": said(answer)} for question, answer in worked]
    if algorithm == "kto":
        return [
            {"prompt": asked(question), "completion": said((right, wrong)[i % 2]), "label": i % 2 == 0}
            for i, (question, right, wrong) in enumerate(judged)
        ]
    return [{"prompt": asked(q), "chosen": said(right), "rejected": said(wrong)} for q, right, wrong in judged]


def ours(algorithm: str, model: Path, rows: Path, given: argparse.Namespace, scratch: Path) -> tuple[float, ...]:
    """`raylign train`, and the losses in its metrics."""
    unit = "rows" if algorithm in ("sft", "kto") else "pairs"
    settings = [
        f"algorithm={algorithm}", f"policy.model={model}", f"data.train={rows}", "data.shuffle=false",
        f"run_root={scratch}", "name=ours", f"num_steps={given.steps}", f"algorithm.{unit}_per_update={given.rows}",
        "policy.precision=float32", "reference.precision=float32", f"policy.optim.lr={given.lr}",
        f"policy.optim.betas=[{BETAS[0]},{BETAS[1]}]", "policy.micro_batch_tokens=1024", "tracking.wandb=disabled",
        "cluster.object_store_gb=0.2",
    ]  # fmt: skip
    _finish([sys.executable, "-m", "raylign", "train", *settings], scratch / "ours.log")
    lines = (scratch / "ours" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row)


def theirs(algorithm: str, model: Path, rows: Path, given: argparse.Namespace, scratch: Path) -> tuple[float, ...]:
    """TRL's trainer of the same rows."""
    losses = scratch / "trl.json"
    settings = [algorithm, str(model), str(rows), str(losses), str(given.steps), str(given.rows), str(given.lr)]
    settings.append(given.trl_precision)
    _finish([sys.executable, "-m", "benchmarks.offline_sides.trl_run", *settings], scratch / "trl.log")
    return tuple(json.loads(losses.read_text(encoding="utf-8")))


def _finish(command: list[str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"},
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[:4]} ended with {done.returncode}: {log.read_text(encoding='utf-8')[-3000:]}")


def compare(algorithm: str, form: str, folders: dict[str, Path], given: argparse.Namespace, scratch: Path) -> Parity:
    """Both sides, one after the other."""
    scratch.mkdir()
    made = rows_of(algorithm, form, *solved(given.questions, given.solutions, given.steps * given.rows))
    rows = scratch / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    model = folders["scalar" if algorithm == "rm" else "causal"]
    mine, peer = (side(algorithm, model, rows, given, scratch) for side in (ours, theirs))
    return Parity(algorithm, form, mine, peer)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--solutions", type=Path)
    parser.add_argument("--form", nargs="+", default=["plain", "chat"], choices=["plain", "chat"])
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=4, help="of one step; pairs where rows are pairs")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--trl-precision", default="float32", choices=["float32", "float64"])
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, write the JSON; 1 when a loss differs by more than LIMIT."""
    from raylign.data.sample_model import tiny_model

    given = arguments(argv)
    done: list[Parity] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        source = given.model or tiny_model(root / "tiny", tie=True)
        for form in given.form:
            folders = model_folders(source, root / form, form)
            for algorithm in given.algorithms:
                done.append(compare(algorithm, form, folders, given, root / f"{algorithm}-{form}"))
                print(algorithm, form, " ".join(f"{gap:.1e}" for gap in done[-1].gaps), flush=True)
                if given.json:
                    told = [{**asdict(one), "gaps": one.gaps} for one in done]
                    given.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(root / form)
    table = Table("run", "steps", "loss: first", "last", "relative difference: first", "largest", "same")
    for one in done:
        figures = (f"{one.ours[0]:.6f}", f"{one.ours[-1]:.6f}", f"{one.gaps[0]:.1e}", f"{max(one.gaps):.1e}")
        table.add_row(f"{one.algorithm} {one.form}", str(len(one.ours)), *figures, "yes" if one.same else "NO")
    Console(width=120).print(table)
    return int(not all(one.same for one in done))


if __name__ == "__main__":
    sys.exit(main())
