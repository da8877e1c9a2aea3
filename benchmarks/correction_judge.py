"""Judges of users' turns beside the rules, measured on turns that neither they nor the rules were made with.

    python benchmarks/correction_judge.py --model MODEL --work DIR [--judges head,asked]

`head`: a logistic head on MODEL's hidden states, fitted to the shipped training turns (a minute of one core with
SmolLM2). `asked`: MODEL as it is, asked for yes or no. `raylign feedback corrections` measures each on the shipped
sample, and on the turns that the rules were never changed for. What has been measured is not again.
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


def run(*arguments: str) -> str:
    """A command of raylign; what it says."""
    command = [sys.executable, "-m", "raylign", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr[-2500:])
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--judges", default="head")
    given = parser.parse_args()
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    samples: dict[str, list[str]] = {
        "shipped": [],
        "plain": ["--labelled", str(write(work / "plain.jsonl", turns("held_out", "unseen")))],
    }
    for judge in given.judges.split(","):
        how = ["--train", "shipped"] if judge == "head" else []
        for sample, labelled in samples.items():
            kept = work / f"{judge}-{sample}.txt"
            if not kept.exists():
                out = str(work / f"{judge}-{sample}.jsonl")
                kept.write_text(run("feedback", "corrections", "--model", given.model, "--out", out, *how, *labelled))
            sys.stdout.write(f"{judge}, {sample}\n{kept.read_text()}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
