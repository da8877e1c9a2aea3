"""Real answers to a reward model: right and wrong solutions become a feedback log, the log data sets, those a model.

    python benchmarks/feedback_real.py --data gsm8k_model_solutions_first900.jsonl --out FOLDER [--pairs 480] [--json F]

Simulated people whose taste is whether the answer is right judge two solutions to a question side by side, give thumbs,
and correct wrong ones with the worked answer; some are careless. `feedback build` splits by question. A reward model
learns the built training pairs and is asked about right-versus-wrong solutions to held-out questions, where the truth
is known; beside it stands the baseline that only knows which answer is longer. Intervals are bootstraps over questions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pair_learning import Interval, Training, by_group, in_process, repository_on_path, train_reward_model
from raylign.data.sample_model import prepare_sample_model
from raylign.feedback.build import build
from raylign.feedback.simulate import (
    Group,
    Habits,
    Persona,
    PlantedQuality,
    Question,
    ShownAnswer,
    SignalMix,
    SimulatedLog,
    Simulation,
    simulate,
)
from raylign.feedback.simulate.answers import AnswerPair
from raylign.feedback.source import Source
from rich.console import Console
from rich.table import Table

BUILD = ("split.by=prompt", "split.eval=0", "split.test=0.25")
PANEL = (
    Group("careful", 24, Habits(noise=0.5)),  # right about 88 of 100 times
    Group("careless", 4, Habits(always_left=True, seconds=2.0)),
)
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
KINDS = ("all", "model", "person")
"""Who wrote the right answer: a model as the wrong one's, or a person; told apart since a person's style is easy."""
ROUNDS = 3  # conversations that ask one question


@dataclass(frozen=True, slots=True)
class Solved:
    """A question with its worked answer and what models made of it."""

    question: str
    worked: str
    right: tuple[ShownAnswer, ...]
    wrong: tuple[ShownAnswer, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """A held-out pair whose truth is known."""

    question: str
    good: str
    bad: str
    kind: str  # model | person: who wrote the good one


def read_solved(path: Path) -> list[Solved]:
    """One line a question."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        shown: dict[bool, list[ShownAnswer]] = {True: [], False: []}
        for model in MODELS:
            given = row[model]
            right = bool(given["is_correct"])
            fix = given["solution"] if right else row["ground_truth"]  # nobody corrects what is right
            shown[right].append(ShownAnswer(given["solution"], model, quality=float(right), correction=fix))
        found.append(Solved(row["question"], row["ground_truth"], tuple(shown[True]), tuple(shown[False])))
    return found


class Solutions:
    """An AnswerSource: a right and a wrong solution where there are both, else any two."""

    def __init__(self, solved: Sequence[Solved], seed: int) -> None:
        self._by_question = {one.question: one for one in solved}
        self._rng = random.Random(f"{seed}/solutions")

    async def answer(self, questions: Sequence[Question]) -> Sequence[AnswerPair]:
        return [self._pair(self._by_question[question.text]) for question in questions]

    def _pair(self, solved: Solved) -> AnswerPair:
        both = solved.right and solved.wrong
        pair = (
            [self._rng.choice(solved.right), self._rng.choice(solved.wrong)]
            if both
            else self._rng.sample([*solved.right, *solved.wrong], 2)
        )
        self._rng.shuffle(pair)
        return pair[0], pair[1]


def make_log(solved: Sequence[Solved], seed: int) -> SimulatedLog:
    """Side-by-sides by two annotators each, thumbs and corrections by the users."""
    questions = tuple(one.question for one in solved) * ROUNDS
    settings = Simulation(
        conversations=len(questions),
        questions=questions,
        users=(Group("pupil", 150, Habits(noise=0.5, tie_gap=0.5), PlantedQuality()),),
        annotators=tuple(replace(g, habits=replace(g.habits, tie_gap=0.5)) for g in PANEL),
        personas=(Persona("pupil"),),
        mix=SignalMix(side_by_side=6, thumb=2, correction=2),
        judges_per_pair=2,
        seed=seed,
    )
    return asyncio.run(simulate(settings, Solutions(solved, seed)))


def rows_of(folder: Path, split: str) -> list[dict]:
    """Built pairs."""
    return [json.loads(line) for line in (folder / "pairs" / f"{split}.jsonl").open(encoding="utf-8")]


def conditions(rows: Sequence[dict], solved: Sequence[Solved], seed: int) -> dict[str, list[dict]]:
    """The same pairs as built, with every choice as it should have been, and with sides drawn by lot."""
    right = {(one.question, answer.text) for one in solved for answer in one.right}
    right |= {(one.question, one.worked) for one in solved}
    rng = random.Random(f"{seed}/lots")

    def is_right(row: dict, side: str) -> bool:
        return (row["prompt"][-1]["content"], row[side][0]["content"]) in right

    clean = [
        r if is_right(r, "chosen") else _turned(r) for r in rows if is_right(r, "chosen") != is_right(r, "rejected")
    ]
    return {"built": list(rows), "clean": clean, "shuffled": [_turned(r) if rng.random() < 0.5 else r for r in rows]}


def _turned(row: dict) -> dict:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def trials(solved: Sequence[Solved]) -> Iterator[Trial]:
    """Every right solution beside every wrong one, and the worked answer beside every wrong one."""
    for one in solved:
        for bad in one.wrong:
            yield from (Trial(one.question, good.text, bad.text, "model") for good in one.right)
            yield Trial(one.question, one.worked, bad.text, "person")


def wins_by_length(given: Sequence[Trial], rows: Sequence[dict]) -> list[float]:
    """1 where longer (or shorter, whichever wins more of the training pairs) is the good one."""
    gaps = [len(r["chosen"][0]["content"]) - len(r["rejected"][0]["content"]) for r in rows]
    longer = sum(g > 0 for g in gaps) >= sum(g < 0 for g in gaps)
    found = []
    for trial in given:
        gap = len(trial.good) - len(trial.bad)
        found.append(0.5 if gap == 0 else float((gap > 0) == longer))
    return found


def main() -> None:
    """Log, build, train, ask, tell."""
    given = _arguments()
    repository_on_path()
    console = Console(width=170)
    model = given.model or str(prepare_sample_model())
    shutil.rmtree(given.out, ignore_errors=True)
    solved = read_solved(given.data)
    make_log(solved, given.seed).write(given.out / "feedback.jsonl")
    built = given.out / "built"
    result = build(Source(logs=(given.out / "feedback.jsonl",), overrides=BUILD), built)
    rows = rows_of(built, "train")
    held_out = {r["prompt"][-1]["content"] for r in rows_of(built, "test")}
    assert not held_out & {r["prompt"][-1]["content"] for r in rows}, "a question is on both sides"
    answered = [one for one in solved if one.question in held_out][: given.questions]
    asked = [trial for one in answered for trial in trials([one])]
    console.print(f"{result.rows_in} events, {len(rows)} training pairs, {len(answered)} held-out questions")
    console.print(f"{len(asked)} held-out trials; report: {built / 'report.html'}")
    random.Random(given.seed).shuffle(rows)
    table = Table("trained on", "pairs", *KINDS, "over length, all", "over length, model's", "tok/s")
    by_length = wins_by_length(asked, rows)
    told = {kind: _of_kind(by_length, asked, kind) for kind in KINDS}
    table.add_row("length only", f"{len(rows)}", *(told[k].words for k in KINDS), "", "", "")
    report: list[dict] = [{"trained_on": "length", **{k: asdict(told[k]) for k in KINDS}}]
    for name, part in conditions(rows[: given.pairs], solved, given.seed).items():
        if name not in given.conditions:
            continue
        found, speed = learned_wins(part, asked, given, model, name)
        told = {kind: _of_kind(found, asked, kind) for kind in KINDS}
        over = [a - b for a, b in zip(found, by_length, strict=True)]
        gains = {kind: _of_kind(over, asked, kind) for kind in KINDS}
        shown = (*(told[k].words for k in KINDS), *(gains[k].words for k in ("all", "model")))
        table.add_row(name, f"{len(part)}", *shown, f"{speed:.0f}")
        gained = {"over_length": {k: asdict(gains[k]) for k in KINDS}, "pairs": len(part), "wins": found}
        report.append({"trained_on": name, **{k: asdict(told[k]) for k in KINDS}, **gained})
        if given.json:
            given.json.write_text(json.dumps(report, indent=1) + "\n")
    console.print(table)


def learned_wins(
    part: Sequence[dict], asked: Sequence[Trial], given: argparse.Namespace, model: str, name: str
) -> tuple[list[float], float]:
    """1 where the reward model trained on `part` prefers the good answer; and training tokens a second."""
    file = given.out / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    training = Training(model=model, rows=str(file), lr=given.lr, epochs=given.epochs, seed=given.seed)
    texts = sorted({(t.question, text) for t in asked for text in (t.good, t.bad)})
    scored = in_process(train_reward_model, training, texts, threads=given.threads)
    score = dict(zip(texts, scored.scores, strict=True))
    found = [float(score[t.question, t.good] > score[t.question, t.bad]) for t in asked]
    return found, scored.tokens / scored.seconds


def _of_kind(values: Sequence[float], asked: Sequence[Trial], kind: str) -> Interval:
    both = zip(values, asked, strict=True)
    pairs = [(value, trial.question) for value, trial in both if kind in ("all", trial.kind)]
    return by_group([value for value, _ in pairs], [question for _, question in pairs])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="emptied first")
    parser.add_argument("--model", help="a Hugging Face folder; the sample model when not given")
    parser.add_argument("--pairs", type=int, default=480, help="training pairs used")
    parser.add_argument("--questions", type=int, default=10_000, help="held-out questions asked")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--conditions", nargs="*", default=["built", "clean", "shuffled"])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
