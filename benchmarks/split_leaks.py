"""Does anything held out repeat or continue what is trained on? All pairs, compared by code of its own.

    python benchmarks/split_leaks.py --data FOLDER

FOLDER holds GSM8K as `gsm8k_train.jsonl`, `gsm8k_test_first300.jsonl` and `gsm8k_model_solutions_first900.jsonl`. Two
logs without any ids are built: `solutions`, a verdict on each solution of each question, a tenth of them asked again in
other words; and `conversations` as HH-RLHF has them, a row for each depth of 1,200 conversations of one to four
exchanges, a quarter of them told again with other names and figures. Then every held-out row is compared with every row
of another split: the first question, the turns it goes on from, and the similarity of all that the user said.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

NAMES = ("Ann", "Bela", "Chidi", "Dora", "Emre", "Farah", "Gita", "Hugo", "Ines", "Jonas")
FOLLOW = ("Can you check that again?", "What if everything cost twice as much?", "How did you get there?",
          "Please give only the number.", "And if one of them was missing?")  # fmt: skip
LONG, NEAR_LONG, NEAR = 24, 0.6, 0.8  # as docs/feedback-build.md states them
Row = dict[str, object]
Turns = tuple[tuple[str, str], ...]


def lines(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def retold(text: str, dice: random.Random) -> str:
    """The same story about somebody else, with one figure changed."""
    for name in sorted(set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b", text)))[:3]:
        text = re.sub(rf"\b{name}\b", dice.choice(NAMES), text)
    figures = re.findall(r"\d+", text)
    return text.replace(dice.choice(figures), str(dice.randrange(2, 99)), 1) if figures else text


def solutions(data: Path, dice: random.Random) -> list[Row]:
    rows = []
    for one in lines(data / "gsm8k_train.jsonl") + lines(data / "gsm8k_test_first300.jsonl"):
        rows.append({"prompt": one["question"], "completion": one["answer"], "label": True})
    for one in lines(data / "gsm8k_model_solutions_first900.jsonl"):
        answers = [value for value in one.values() if isinstance(value, dict)]
        rows += [{"prompt": one["question"], "completion": a["solution"], "label": bool(a["is_correct"])}
                 for a in answers]  # fmt: skip
    again = [{**row, "prompt": retold(str(row["prompt"]), dice)} for row in dice.sample(rows, len(rows) // 10)]
    return [*rows, *again]


def conversations(data: Path, dice: random.Random) -> list[Row]:
    rows: list[Row] = []
    chosen = dice.sample(lines(data / "gsm8k_train.jsonl"), 900)
    talks = [(str(one["question"]), str(one["answer"])) for one in chosen]
    talks += [(retold(question, dice), answer) for question, answer in dice.sample(talks, 300)]
    for question, answer in talks:
        text = f"\n\nHuman: {question}"
        for depth in range(dice.randrange(1, 5)):
            good, bad = f"{answer} ({depth})", f"I do not know, perhaps {dice.randrange(1000)}."
            rows.append({"chosen": f"{text}\n\nAssistant: {good}", "rejected": f"{text}\n\nAssistant: {bad}"})
            text += f"\n\nAssistant: {good}\n\nHuman: {dice.choice(FOLLOW)}"
    return rows


@dataclass(frozen=True)
class Held:
    """A built row: its split, and what was said up to its answer."""

    split: str
    turns: Turns


def built_rows(folder: Path) -> list[Held]:
    found = []
    for file in sorted(folder.glob("*/*.jsonl")):
        for row in lines(file):
            said = row["messages"][:-1] if "messages" in row else row["prompt"]  # type: ignore[index]
            found.append(Held(file.stem, tuple((t["role"], t["content"]) for t in said)))  # type: ignore[union-attr]
    return list(dict.fromkeys(found))


def word_pairs(rows: list[Held]) -> csr_array:
    """[rows, different pairs of neighbouring words] of 0 and 1."""
    names: dict[tuple[str, str], int] = {}
    columns, starts = [], [0]
    for row in rows:
        words = ["^"]
        for role, content in row.turns:
            words += re.findall(r"[^\W_]+", content.lower()) if role == "user" else []
        words.append("$")
        columns += sorted({names.setdefault(two, len(names)) for two in pairwise(words)})
        starts.append(len(columns))
    return csr_array((np.ones(len(columns), np.float32), columns, starts), shape=(len(rows), len(names)))


def nearest(rows: list[Held]) -> tuple[int, int, float]:
    """Pairs of rows in two splits that are near, pairs compared, and the highest similarity of such a pair."""
    near = compared = 0
    highest = 0.0
    matrix = word_pairs(rows)
    splits, sizes = np.array([row.split for row in rows]), np.asarray(matrix.sum(axis=1)).ravel()
    for held, others in (("test", ("train", "eval")), ("eval", ("train",))):
        one, other = np.flatnonzero(splits == held), np.flatnonzero(np.isin(splits, others))
        for part in np.array_split(one, max(1, len(one) // 200)):
            shared = (matrix[part] @ matrix[other].T).toarray()
            alike = shared / (sizes[part][:, None] + sizes[other][None, :] - shared)
            both_long = np.minimum(sizes[part][:, None], sizes[other][None, :]) >= LONG
            near += int((alike >= np.where(both_long, NEAR_LONG, NEAR)).sum())
            compared += alike.size
            highest = max(highest, float(alike.max(initial=0.0)))
    return near, compared, highest


def across(rows: list[Held], key: int | None) -> int:
    """First turns (key 0), or whole beginnings that somebody goes on from (None), that stand in two splits."""
    where: dict[Turns, set[str]] = {}
    for row in rows:
        cuts = [1] if key == 0 else range(1, len(row.turns) + 1, 2)
        for cut in cuts:
            where.setdefault(row.turns[:cut], set()).add(row.split)
    return sum(len(splits) > 1 for splits in where.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    for name, make in (("solutions", solutions), ("conversations", conversations)):
        made = make(given.data.expanduser(), random.Random(14))
        with tempfile.TemporaryDirectory() as folder:
            log, out = Path(folder) / "log.jsonl", Path(folder) / "built"
            log.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
            command = [sys.executable, "-m", "raylign", "feedback", "build", str(log), "--out", str(out)]
            subprocess.run(command, check=True, capture_output=True, timeout=600)
            figures = json.loads((out / "build.json").read_text())
            rows = built_rows(out)
        dropped = {drop["rule"]: drop["events"] for drop in figures["event_drops"]}.get("split_overlap", 0)
        counts = {split: sum(row.split == split for row in rows) for split in ("train", "eval", "test")}
        near, compared, highest = nearest(rows)
        sys.stdout.write(
            f"{name}: {len(made):,} judgements ({figures['log_format']}), {dropped:,} dropped as split_overlap, "
            f"questions by split {counts}\n  in two splits: first questions {across(rows, 0)}, beginnings "
            f"{across(rows, None)}; near pairs across splits: {near} of {compared:,}, the nearest {highest:.3f}\n"
        )


if __name__ == "__main__":
    main()
