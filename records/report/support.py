"""Reward gained where the reward model's ensemble is unsure, and the answers whose judgement would tell most."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from raylign.records.atomic import write_atomic
from raylign.records.run_folder import RunPaths
from raylign.records.samples import SampleRow, read_samples

MODEL, SPREAD = "model", "model_spread"
"""Components of a reward: the heads' mean, and their standard deviation."""

ASK_NEXT = "ask-next.jsonl"
MOST_ASKED = 50

_USUAL = 0.9  # share of the first step's answers about which the ensemble is as sure


@dataclass(frozen=True, slots=True)
class Support:
    """The change of the reward model's mean score from the first kept step to the last, cut in two.

    `gain` is the sum over the last step's answers of their score less the first step's mean, over their number; `thin`
    is the part of that sum which comes from answers with a spread above `limit`.
    """

    first_step: int
    last_step: int
    limit: float
    answers: float  # share of the last step's answers above the limit
    gain: float
    thin: float

    @property
    def sentence(self) -> str:
        """For a person."""
        share = (
            f"{self.answers:.0%} of the answers of step {self.last_step} are such that the reward model's ensemble is "
            f"less sure of them than of nine in ten at step {self.first_step}"
        )
        if self.gain <= 0:
            return f"{share}."
        return f"{share}; {self.thin / self.gain:.0%} of the gain in its score ({self.gain:+.2f}) comes from them."

    @property
    def doubtful(self) -> bool:
        """More than half of the gain is where the ensemble is unsure, and more than twice its usual share is there."""
        return self.gain > 0 and self.thin > self.gain / 2 and self.answers > 2 * (1 - _USUAL)


def support(first: Sequence[SampleRow], last: Sequence[SampleRow], steps: tuple[int, int]) -> Support | None:
    """Of two steps' samples; None where their rewards hold no spread."""
    before, after = _table(first), _table(last)
    if not len(before) or not len(after):
        return None
    limit = float(np.quantile(before[:, 1], _USUAL))
    gained = after[:, 0] - before[:, 0].mean()
    above = after[:, 1] > limit
    return Support(*steps, limit, float(above.mean()), float(gained.mean()), float(gained[above].sum() / len(gained)))


def ask_next(rows: Sequence[SampleRow], most: int = MOST_ASKED) -> list[dict[str, object]]:
    """Lines of Raylign's own log without a choice: of each prompt the two answers that the ensemble is least sure of.

    The prompts with the largest spread come first; a person fills in `choice`.
    """
    prompts: dict[str, dict[str, SampleRow]] = {}
    for row in rows:
        if SPREAD in row.reward_components:
            prompts.setdefault(row.prompt, {}).setdefault(row.response, row)
    asked = []
    for answers in prompts.values():
        unsure = sorted(answers.values(), key=lambda row: -row.reward_components[SPREAD])[:2]
        if len(unsure) == 2:
            asked.append((unsure[0].reward_components[SPREAD] + unsure[1].reward_components[SPREAD], unsure))
    asked.sort(key=lambda one: -one[0])
    return [_line(a, b) for _, (a, b) in asked[:most]]


def write_ask_next(paths: RunPaths) -> tuple[Support | None, Path | None]:
    """What the run's first and last samples say, and the file of what to ask, where there is something."""
    files = sorted(paths.samples.glob("step-*.parquet"))
    if len(files) < 2:
        return None, None
    first, last = read_samples(files[0]), read_samples(files[-1])
    steps = (int(files[0].stem.removeprefix("step-")), int(files[-1].stem.removeprefix("step-")))
    lines = ask_next(last)
    path = paths.path / ASK_NEXT if lines else None
    if path:
        write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return support(first, last, steps), path


def _table(rows: Sequence[SampleRow]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    both = [(r.reward_components[MODEL], r.reward_components[SPREAD]) for r in rows if SPREAD in r.reward_components]
    return np.array(both, dtype=np.float64).reshape(-1, 2)


def _line(a: SampleRow, b: SampleRow) -> dict[str, object]:
    name = hashlib.blake2b(json.dumps([a.prompt, a.response, b.response]).encode(), digest_size=8).hexdigest()
    return {
        "event_id": f"ask/{name}",
        "kind": "side_by_side",
        "prompt": [{"role": "user", "content": a.prompt}],
        "response_a": a.response,
        "response_b": b.response,
        "choice": None,
    }
