"""What a build was made from, what it did and what came out: every figure of the data card and of the report.

A `BuildResult` is written as build.json and read back by `read_result`. It holds no path of this machine, no time and
nobody's raw id, so that the same input and settings give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from raylign.feedback.scores import ScoreRead

SPLITS = ("train", "eval", "test")
KINDS = ("sft", "pairs", "kto", "teacher")


@dataclass(frozen=True, slots=True)
class InputFile:
    """One log that was read."""

    name: str  # the file's name, without its folder
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Example:
    """A dropped event or row to look at. Texts are redacted and cut to a few hundred characters."""

    event_ids: tuple[str, ...]
    prompt: str  # the last user turn
    answer: str  # the answer, or the better one of two
    other: str = ""  # the other answer, where there are two
    whole: tuple[tuple[str, str], ...] = ()  # role and text of every turn and answer, where the above leaves any out


@dataclass(frozen=True, slots=True)
class EventDrop:
    """Events that one rule kept out of everything."""

    rule: str
    stage: str  # reading | cleaning | splitting | signals | rows
    why: str  # a sentence for people
    events: int
    examples: tuple[Example, ...]  # up to five


@dataclass(frozen=True, slots=True)
class RowDrop:
    """Rows of one kind that one rule removed after they were made. Their events may live on in other rows."""

    rule: str
    kind: str  # one of KINDS
    why: str
    rows: int
    examples: tuple[Example, ...]  # up to five


@dataclass(frozen=True, slots=True)
class WaterfallStep:
    """What went into a step and what was left: `before - lost == after`, and each `after` is the next `before`."""

    name: str  # "in", then each rule in the order applied, "quarantined" first
    why: str
    before: int
    lost: int
    after: int


@dataclass(frozen=True, slots=True)
class SignalFate:
    """What became of one kind of event (`side_by_side`, `thumb_up`, `thumb_down`, `rating`, `correction`)."""

    signal: str
    read: int
    used: int  # events named by at least one row
    in_sft: int  # events named by SFT rows, and so on; one event may be in several
    in_pairs: int
    in_kto: int
    in_teacher: int = 0  # builds of earlier versions had none


@dataclass(frozen=True, slots=True)
class Produced:
    """One file that can be trained on."""

    kind: str  # one of KINDS
    split: str  # train | eval | test
    path: str  # inside the build's folder
    rows: int
    desirable: int  # KTO rows with label true; 0 for other kinds
    weight_sum: float
    mean_answer_chars: float  # of answers, chosen answers or completions
    mean_rejected_chars: float  # pairs only, else 0
    users: int
    bytes: int
    sha256: str
    ledger: str = ""  # id of whose judgements its rows were made from, as runs that train on it record it


@dataclass(frozen=True, slots=True)
class RuleCount:
    """How many rows of a kind one making rule had a part in."""

    kind: str
    rule: str
    why: str
    rows: int


@dataclass(frozen=True, slots=True)
class Count:
    """A named number."""

    name: str
    count: int


@dataclass(frozen=True, slots=True)
class ShownPair:
    """A produced preference to look at, redacted."""

    row_id: str
    prompt: str
    chosen: str
    rejected: str
    margin: float
    weight: float
    rules: tuple[str, ...]
    event_ids: tuple[str, ...]
    chosen_cut: bool = False  # at the token limit
    rejected_cut: bool = False
    whole: tuple[tuple[str, str], ...] = ()  # as in Example


@dataclass(frozen=True, slots=True)
class Setting:
    """One choice as used, and what it would have been by default; values as on the command line."""

    key: str
    value: str
    default: str
    why: str


@dataclass(frozen=True, slots=True)
class NoiseFound:
    """The share of choices that name the worse answer, by the best of feedback/trust/noise.py's methods."""

    method: str  # between | within | circles
    rate: float
    low: float  # the ends of the 95 % interval
    high: float
    cases: int  # pairs judged twice, or triangles
    label_smoothing: float  # the setting that suits a loss, for rows made of one judgement each


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Everything a reader asks of a build. `rows_in == quarantined + events_dropped + events_used`, exactly."""

    code_version: str  # version and hash of the code that built it
    settings_hash: str
    log_format: str
    inputs: tuple[InputFile, ...]
    settings: tuple[Setting, ...]
    rows_in: int  # judgements in the logs: one a row in most formats
    quarantined: int
    quarantine_reasons: tuple[Count, ...]  # most frequent first
    events_dropped: int
    events_used: int
    waterfall: tuple[WaterfallStep, ...]
    event_drops: tuple[EventDrop, ...]  # in the order applied; each dropped event counts once
    row_drops: tuple[RowDrop, ...]
    signals: tuple[SignalFate, ...]
    produced: tuple[Produced, ...]  # twelve files, kinds x splits
    made_by: tuple[RuleCount, ...]
    redactions: tuple[Count, ...]  # placeholders by type: EMAIL, PHONE, ...
    pairs_to_look_at: tuple[ShownPair, ...]  # up to five
    warnings: tuple[str, ...]  # sentences: what a reader should know before training
    forgotten: int  # tombstones that were applied
    log_rows: int = 0  # rows of the logs, whatever each holds
    noise: NoiseFound | None = None  # None: too little was judged twice to tell
    scores: tuple[ScoreRead, ...] = ()  # named scores of the log and what each was read as, most frequent first
    not_covered: str = ""  # sentences: personal data that was not looked for, and which model looked for names

    def to_json(self) -> str:
        """The text of build.json."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n"


def read_result(folder: Path) -> BuildResult:
    """The result of the build in `folder`. Raises OSError or pydantic's ValidationError when there is none."""
    return TypeAdapter(BuildResult).validate_json((folder / "build.json").read_bytes())
