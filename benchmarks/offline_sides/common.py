"""A job for one side, its rows, and what a side reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

ROWS_PER_STEP = {"sft": 8, "dpo": 4, "rm": 4, "kto": 8}
WARM_UP = {"float32": 1, "bfloat16": 2}
"""Steps that are run and not counted. What a process holds settles in its second step, at the price of a second of
page faults: much where a step takes three."""
DEADLINE_S = 600.0
"""For one rank to wait for another."""
LR = 1e-5
BETA = 0.1


@dataclass(frozen=True, slots=True)
class Job:
    """What the ranks of one side do together."""

    side: str  # ours, trl or trl-best
    algorithm: str  # a key of ROWS_PER_STEP
    precision: str  # float32 or bfloat16
    ranks: int
    model: str
    rows: str
    steps: int  # counted ones; WARM_UP more are run first
    batch: int = 0  # rows a step; 0: ROWS_PER_STEP
    held_out: str = ""  # rows that are not trained on
    eval_every: int = 0  # steps between two looks at them; 0: never
    scratch: str = ""  # a folder of this run's own, which its ranks share

    @property
    def rows_per_step(self) -> int:
        """Of all ranks together."""
        return self.batch or ROWS_PER_STEP[self.algorithm]

    @property
    def warm_up(self) -> int:
        """Steps that are not counted."""
        return WARM_UP[self.precision]

    @property
    def all_steps(self) -> int:
        """That are played."""
        return self.warm_up + self.steps

    def looks(self, done: int) -> bool:
        """Whether the held-out rows are due after `done` steps."""
        return bool(self.eval_every) and done % self.eval_every == 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rank measured, warm-up left out."""

    tokens: int  # non-padding tokens of all ranks
    seconds: float  # of the steps, optimizer included
    reference_s: float  # of reference log-probs computed apart from the steps, for the counted steps
    losses: tuple[float, ...]  # of every step, warm-up included
    memory_gb: float  # this rank's peak while training, beyond the imported libraries and the model itself
    held_out: tuple[float, ...] = ()  # after 0, eval_every, ... steps: loss a token, or accuracy of a reward model


@dataclass(frozen=True, slots=True)
class Example:
    """Ids of a prompt, its answer, and a worse one."""

    prompt: list[int]
    answer: list[int]
    worse: list[int]
    good: bool  # which of them an unpaired row shows

    @property
    def shown(self) -> list[int]:
        """The answer of an unpaired row."""
        return self.answer if self.good else self.worse

    def tokens(self, algorithm: str) -> int:
        """Non-padding tokens of one row, each side of a pair with its prompt. KTO's second sequence is not counted:
        it is not trained."""
        if algorithm == "kto":
            return len(self.prompt) + len(self.shown)
        one = len(self.prompt) + len(self.answer)
        return one if algorithm == "sft" else one + len(self.prompt) + len(self.worse)


def examples(job: Job) -> list[Example]:
    """The training rows in file order, as many as the job takes."""
    return encoded(job.model, job.rows, job.rows_per_step * job.all_steps)


def held_out_examples(job: Job) -> list[Example]:
    """All rows that are not trained on."""
    return encoded(job.model, job.held_out, None) if job.held_out else []


def encoded(model: str, path: str, count: int | None) -> list[Example]:
    """Rows in file order, tokenised by our encoder. The worse answer is the row's own `worse`, else the next row's."""
    from raylign.data.encoder import Encoder
    from raylign.data.tokenize import load_tokenizer

    encoder = Encoder(load_tokenizer(model))
    with Path(path).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, None if count is None else count + 1)]
    found = []
    for i, (row, other) in enumerate(zip(rows[:count], [*rows[1:], rows[0]], strict=False)):
        answers = (row["answer"], row.get("worse", other["answer"]))
        good, bad = (encoder.encode_answer(row["question"], answer) for answer in answers)
        cut = good.prompt_tokens
        prompt, answer = list(good.token_ids[:cut]), list(good.token_ids[cut:])
        found.append(Example(prompt, answer, list(bad.token_ids[cut:]), good=i % 2 == 0))
    return found


def steps_of(job: Job, rows: Sequence[Example]) -> list[Sequence[Example]]:
    """The rows of each step."""
    return [rows[i : i + job.rows_per_step] for i in range(0, len(rows), job.rows_per_step)]


def mismatched(part: Sequence[Example]) -> Iterator[list[int]]:
    """For each unpaired row of a step the answer of the row before it: what KTO measures its KL on."""
    for i in range(len(part)):
        yield part[i - 1].shown


class PeakMemory:
    """Resident memory beyond the libraries; the kernel's high-water mark is reset when a model is loaded."""

    def __init__(self) -> None:
        """Before the model is loaded."""
        self._libraries = _status_gb("VmRSS")
        self._model = 0.0

    def loaded(self, model_bytes: int) -> None:
        """The model is there; what comes on top counts."""
        self._model = model_bytes / 1e9
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_gb(self) -> float:
        """Since `loaded`."""
        return _status_gb("VmHWM") - self._libraries - self._model


def _status_gb(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith(name)) / 1e6
