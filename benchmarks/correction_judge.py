"""A judge of users' turns, trained from labelled ones: SmolLM2 learns yes or no, and is measured on turns it never saw.

    python benchmarks/correction_judge.py --model MODEL --work DIR [--epochs 3] [--only bare|train|trained]

Trains on the 340 turns that the rules were written with (`tests/unit/feedback/building/correction_*.jsonl`), which have
no conversation of their own and get a made-up one, by `raylign train algorithm=sft`; then `raylign feedback
corrections` measures it, and the untrained model, on the shipped sample and on the turns the rules were never changed
for. Half an hour on two quiet cores, most of it training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TURNS = ROOT / "tests/unit/feedback/building"
CONVERSATIONS = (
    ("When does the shop open on Monday?", "It opens at nine on Monday."),
    ("Write a short text about the sea.", "The sea is wide and blue, and it is never still."),
    ("Wie hoch ist der Brocken?", "Der Brocken ist 1.141 Meter hoch."),
    ("Donne-moi trois idées de cadeau.", "Un livre, une plante, un jeu."),
    ("¿Cuántos días tiene febrero?", "Febrero tiene 28 días, y 29 en los años bisiestos."),
    ("Scrivi una funzione che somma due numeri.", "def somma(a, b): return a + b"),
    ("Como se diz obrigado em inglês?", "Thank you."),
)  # what the labelled turns are put behind


def turns(*parts: str) -> list[dict[str, object]]:
    """Labelled turns of these parts of both files, each behind a made-up conversation."""
    rows = []
    talk = itertools.cycle(CONVERSATIONS)
    for file in ("correction_turns.jsonl", "correction_languages.jsonl"):
        for line in (TURNS / file).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["part"] in parts:
                question, answer = next(talk)
                rows.append({"question": question, "answer": answer, "turn": row.get("turn") or row["text"],
                             "corrects": row["corrects"] if "corrects" in row else row["correction"],
                             "language": row.get("language", "en")})  # fmt: skip
    return rows


def write(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def train_rows() -> list[dict[str, object]]:
    """The question as the command asks it, and the word that is right."""
    from raylign.feedback.judged_turns import QUESTION, Turn
    from raylign.reward.judge import Rubric
    from raylign.reward.samples import Sample

    rows = []
    for row in turns("tuned", "seen"):
        turn = Turn(str(row["question"]), str(row["answer"]), str(row["turn"]))
        asked = Rubric.of(QUESTION).filled(Sample(turn.conversation(), turn.text, (), (), "", None, {}))
        said = "yes" if row["corrects"] else "no"
        rows.append({"prompt": [{"role": "user", "content": asked}],
                     "completion": [{"role": "assistant", "content": said}]})  # fmt: skip
    return rows


def run(*arguments: str) -> None:
    """A command of raylign; its last lines are shown."""
    command = [sys.executable, "-m", "raylign", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    sys.stdout.write(f"$ raylign {' '.join(arguments)}\n{done.stdout[-2500:]}\n")
    sys.stdout.flush()
    if done.returncode:
        sys.exit(done.stderr[-2500:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", choices=("trained", "bare", "train"), default="")
    given = parser.parse_args()
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    rows = write(work / "train.jsonl", train_rows())
    if given.only != "bare" and not (work / "judge").exists():
        updates = given.epochs * len(rows.read_text().splitlines()) // 16
        run("train", "algorithm=sft", f"policy.model={given.model}", f"data.train={rows}", f"num_steps={updates}",
            "algorithm.rows_per_update=16", "policy.optim.lr=3e-5", "policy.precision=bfloat16",
            f"run_root={work}", "name=judge", "tracking.wandb=disabled")  # fmt: skip
    judges = {"trained": str(work / "judge"), "bare": given.model}
    for name, judge in judges.items():
        if given.only in ("", name):
            run("feedback", "corrections", "--model", judge, "--out", str(work / f"{name}-shipped.jsonl"))
            for part in ("held_out", "unseen", "adversarial"):
                sample = write(work / f"{part}.jsonl", turns(part))
                run("feedback", "corrections", "--model", judge, "--labelled", str(sample),
                    "--out", str(work / f"{name}-{part}.jsonl"))  # fmt: skip


if __name__ == "__main__":
    main()
