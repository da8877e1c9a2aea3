"""What wrong choices cost, and what the noise handling gives back: reward models and DPO at 0 to 40 % flipped pairs.

    python benchmarks/feedback_noise.py --out FOLDER [--seeds 5] [--json F] [--figure docs/feedback-noise.svg]

Simulated people with one stated taste (`reward/taste.py`) judge answers made of sentences; a share of their choices
is flipped, either everybody's alike, or by some people who toss coins. Most pairs are judged once, some by three
people, as a team would do it: those tell the noise and the judges, and are not trained on. `feedback build` makes the
rows, with and without `trust.weights=annotator`; its own estimate sets the smoothing. The model is a random two-layer
Llama, so that every arm can be repeated. Quality is accuracy on held-out pairs against the true taste.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from raylign.feedback.build import build
from raylign.feedback.simulate import (
    Group,
    Habits,
    Persona,
    PlantedModel,
    SimulatedLog,
    Simulation,
    StatedRule,
    TemplateAnswers,
)
from raylign.feedback.simulate.run import simulate
from raylign.feedback.source import Source
from rich.console import Console
from rich.table import Table

MODELS = (
    PlantedModel("terse", words=8, filler_rate=0.1),
    PlantedModel("plain", words=14, filler_rate=0.4),
    PlantedModel("wordy", words=24, filler_rate=0.7),
)
JUDGES = 10
PAIRS, SEEN_BY_THREE, HELD_OUT = 280, 160, 300
EPOCHS, PAIRS_PER_UPDATE = 3, 16
RATES = (0.0, 0.1, 0.2, 0.4)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train."""

    name: str
    algorithm: str  # rm | dpo
    smoothed: bool = False  # algorithm.label_smoothing as estimated
    loss: str = "sigmoid"  # of DPO
    weighed: bool = False  # trust.weights=annotator


ARMS = (
    Arm("plain", "rm"),
    Arm("smoothing", "rm", smoothed=True),
    Arm("weights", "rm", weighed=True),
    Arm("plain", "dpo"),
    Arm("smoothing", "dpo", smoothed=True),
    Arm("robust", "dpo", smoothed=True, loss="robust"),
    Arm("weights", "dpo", weighed=True),
)


@dataclass(frozen=True, slots=True)
class Found:
    """One training."""

    noise: str  # everybody | some people
    rate: float
    seed: int
    algorithm: str
    arm: str
    accuracy: float
    estimate: float  # of the rate, by the build
    flipped: float  # what was flipped in fact


def crowd(kind: str, rate: float) -> tuple[Group, ...]:
    """JUDGES people whose choices are flipped at `rate` on average."""
    if kind == "everybody":
        return (Group("judge", JUDGES, Habits(noise=0.0, flip_rate=rate, tie_gap=1e-9), StatedRule()),)
    coins = round(2 * rate * JUDGES)
    sure = Habits(noise=0.0, tie_gap=1e-9)
    tossing = Habits(noise=0.0, flip_rate=0.5, tie_gap=1e-9)
    return tuple(
        Group(name, count, habits, StatedRule())
        for name, count, habits in (("judge", JUDGES - coins, sure), ("coin", coins, tossing))
        if count
    )


def log_of(panel: tuple[Group, ...], conversations: int, judges: int, seed: int) -> SimulatedLog:
    """Side-by-sides by `judges` people of the panel each."""
    settings = Simulation(
        conversations=conversations,
        users=(Group("asks", 100, Habits(), StatedRule()),),
        annotators=panel,
        judges_per_pair=judges,
        personas=(Persona("user"),),
        seed=seed,
    )
    return asyncio.run(simulate(settings, TemplateAnswers(MODELS, seed=seed)))


@dataclass(frozen=True, slots=True)
class Rows:
    """Training files of one log."""

    plain: Path
    weighed: Path
    estimate: float
    flipped: float


def rows_of(kind: str, rate: float, seed: int, out: Path) -> Rows:
    """The log, built twice; only pairs that one person judged are kept, as they were judged."""
    panel = crowd(kind, rate)
    once, thrice = log_of(panel, PAIRS, 1, 2 * seed + 1000), log_of(panel, SEEN_BY_THREE, 3, 2 * seed + 1001)
    logs = (out / "once.jsonl", out / "thrice.jsonl")
    renamed = SimulatedLog(tuple(_apart(event) for event in thrice.events), thrice.truth)
    for log, path in zip((once, renamed), logs, strict=True):
        log.write(path)
    better = {
        e.event_id: e.response_a if once.truth.better.get(e.event_id) == "a" else e.response_b for e in once.events
    }
    files, wrong, estimate = [], [], 0.0
    for name, setting in (("off", "off"), ("judges", "annotator")):
        overrides = ("split.by=prompt", "split.eval=0", "split.test=0", "clean.near_duplicates=false")
        built = out / name
        result = build(Source(logs=logs, overrides=(*overrides, f"trust.weights={setting}")), built, with_report=False)
        estimate = result.noise.label_smoothing if result.noise else 0.0
        rows = [json.loads(line) for line in (built / "pairs" / "train.jsonl").open(encoding="utf-8")]
        rows = [row for row in rows if len(row["events"]) == 1 and row["events"][0] in better]
        if name == "off":
            wrong = [row["chosen"][0]["content"] != better[row["events"][0]] for row in rows]
        files.append(out / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Rows(files[0], files[1], estimate, fmean(wrong))


def _apart(event):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(event, event_id=f"thrice/{event.event_id}", conversation_id=f"thrice/{event.conversation_id}")


def held_out(path: Path, seed: int) -> Path:
    """Pairs of other questions, by the true taste."""
    log = log_of((Group("truth", 1, Habits(noise=0.0, tie_gap=0.25), StatedRule()),), HELD_OUT, 1, 7_000 + seed)
    lines = []
    for event in log.events:
        if event.choice and event.choice.value in "ab":
            first = event.choice.value == "a"
            sides = (event.response_a, event.response_b) if first else (event.response_b, event.response_a)
            lines.append({"prompt": event.prompt[-1].content, "chosen": sides[0], "rejected": sides[1]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


class _Here:
    """A SequenceScorer that is this process."""

    def __init__(self, learner) -> None:  # type: ignore[no-untyped-def]
        self._learner = learner

    async def sequence_logprobs(self, batches):  # type: ignore[no-untyped-def]
        return [self._learner.sequence_logprobs(rank) for rank in batches]


def accuracy_of(arm: Arm, rows: Rows, test: Path, model: Path, seed: int) -> float:
    """Train one arm; held-out accuracy against the true taste."""
    from raylign.conf.choices import DPOLoss
    from raylign.conf.schema import DataConfig, OptimConfig, Precision, Schedule
    from raylign.data.row_feed import FeedSettings, RowFeed
    from raylign.data.row_kinds import load_rows
    from raylign.data.tokenize import load_tokenizer
    from raylign.data.types import RowKind
    from raylign.trainer.algorithms.dpo import DPO, DPOConfig
    from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
    from raylign.trainer.engine.torch_engine import TorchEngine
    from raylign.trainer.learner import Learner
    from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
    from raylign.trainer.workers.offline_model import objective_of
    from raylign.trainer.workers.sequence_scores import score_sequences

    smoothing = min(0.45, rows.estimate) if arm.smoothed else 0.0
    tokenizer = load_tokenizer(str(model))
    train, known = (
        load_rows(RowKind.PAIRS, str(path), DataConfig(max_length=512), tokenizer)
        for path in (rows.weighed if arm.weighed else rows.plain, test)
    )
    steps = len(train) * EPOCHS // PAIRS_PER_UPDATE
    if arm.algorithm == "rm":
        algorithm = RewardModelling(RMConfig(label_smoothing=smoothing, centering_coef=0.01))
        net = load_scalar_model(model, precision=Precision.float32, new_head_seed=seed)
    else:
        algorithm = DPO(DPOConfig(loss=DPOLoss(arm.loss), label_smoothing=smoothing))
        net = load_causal_lm(model, precision=Precision.float32)
    optim = OptimConfig(lr=1e-3, warmup_steps=5, schedule=Schedule.linear)
    learner = Learner(TorchEngine(net, optim, total_steps=steps))
    if arm.algorithm == "dpo":
        train, known = (
            part.with_reference(
                asyncio.run(score_sequences(part.sequences(), _Here(learner), num_ranks=1, micro_batch_tokens=4096))
            )
            for part in (train, known)
        )
    feed = RowFeed(train, {"known": known}, FeedSettings(1, PAIRS_PER_UPDATE, 4096, seed, True), {})
    objective = objective_of(algorithm)
    for _ in range(steps):
        learner.update(feed.next_update()[0], objective)
    metrics = learner.evaluate(feed.held_out()["known"][0], objective)
    return metrics["accuracy"] if arm.algorithm == "rm" else metrics["rewards/accuracies"]


def conditions() -> list[tuple[str, float]]:
    """Without flips there is one kind of crowd."""
    return [("everybody", rate) for rate in RATES] + [("some people", rate) for rate in RATES[1:]]


def measure(seeds: int, out: Path, arms: Sequence[Arm], json_file: Path | None) -> list[Found]:
    """Everything, one after the other; what is in `json_file` already is not measured again."""
    import torch
    from raylign.data.sample_model import tiny_model

    torch.set_num_threads(1)  # the model is small, and pools that spin slow each other down
    found = [Found(**row) for row in json.loads(json_file.read_text())] if json_file and json_file.exists() else []
    done = {(f.noise, f.rate, f.seed, f.algorithm, f.arm) for f in found}
    for seed in range(seeds):
        for kind, rate in conditions():
            todo = [arm for arm in arms if (kind, rate, seed, arm.algorithm, arm.name) not in done]
            if not todo:
                continue
            folder = out / f"{kind.split()[0]}-{rate}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            model = tiny_model(folder / "model", tie=True, seed=seed)
            rows, test = rows_of(kind, rate, seed, folder), held_out(folder / "held-out.jsonl", seed)
            for arm in todo:
                accuracy = accuracy_of(arm, rows, test, model, seed)
                found.append(Found(kind, rate, seed, arm.algorithm, arm.name, accuracy, rows.estimate, rows.flipped))
                print(kind, rate, seed, arm.algorithm, arm.name, f"{accuracy:.3f}", file=sys.stderr, flush=True)
                if json_file:
                    json_file.write_text(json.dumps([asdict(f) for f in found], indent=1) + "\n")
            shutil.rmtree(folder)
    return found


def words(values: Sequence[float]) -> str:
    """Mean and standard error, in per cent."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{100 * fmean(values):.1f} ±{100 * error:.1f}"


def table_of(found: Sequence[Found]) -> Table:
    """Conditions down, arms across."""
    columns = [(arm.algorithm, arm.name) for arm in ARMS]
    table = Table("flipped", "by", "estimate", *(f"{algorithm} {name}" for algorithm, name in columns))
    for kind, rate in conditions():
        here = [f for f in found if (f.noise, f.rate) == (kind, rate)]
        if here:
            cells = [
                words(values) if (values := [f.accuracy for f in here if (f.algorithm, f.arm) == column]) else ""
                for column in columns
            ]
            estimate = fmean(f.estimate for f in here)
            table.add_row(f"{rate:.0%}", kind if rate else "nobody", f"{estimate:.2f}", *cells)
    return table


def draw(found: Sequence[Found], path: Path) -> None:
    """Accuracy over flips: a panel for each algorithm and kind of noise."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "raylign", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot

    colours = {"plain": "#6b7280", "smoothing": "#d97706", "robust": "#7c3aed", "weights": "#0f766e"}
    panels = [(a, k) for a in ("rm", "dpo") for k in ("everybody", "some people")]
    titles = {"rm": "Reward model", "dpo": "DPO"}
    figure, axes = pyplot.subplots(2, 2, figsize=(8.4, 6.2), sharex=True, sharey="row", layout="constrained")
    for axis, (algorithm, kind) in zip(axes.flat, panels, strict=True):
        for arm in [arm for arm in ARMS if arm.algorithm == algorithm]:
            points = []
            for rate in RATES:
                values = [f.accuracy for f in found if (f.algorithm, f.arm, f.rate) == (algorithm, arm.name, rate)
                          and f.noise == (kind if rate else "everybody")]  # fmt: skip
                if values:
                    points.append((100 * rate, 100 * fmean(values), 100 * stdev(values) / len(values) ** 0.5))
            x, y, error = zip(*points, strict=True)
            axis.errorbar(x, y, error, label=arm.name, color=colours[arm.name], marker="o", markersize=4, capsize=3)
        axis.set_title(f"{titles[algorithm]}, flips by {kind}", loc="left", fontsize=10)
        axis.grid(axis="y", color="#e5e7eb")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9, loc="lower left")
        axis.set_xticks([100 * rate for rate in RATES])
    for axis in axes[1]:
        axis.set_xlabel("choices that are flipped, %")
    for axis in axes[:, 0]:
        axis.set_ylabel("right on held-out pairs, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Measure, tell, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--algorithms", nargs="+", default=["rm", "dpo"])
    parser.add_argument("--json", type=Path, help="results; a second run goes on from them")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    arms = [arm for arm in ARMS if arm.algorithm in given.algorithms]
    found = measure(given.seeds, given.out, arms, given.json)
    Console(width=170).print(table_of(found))
    if given.figure:
        draw(found, given.figure)


if __name__ == "__main__":
    main()
