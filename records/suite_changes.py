"""What the suites of a run scored before and after it, for its summary, its report and its last line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raylign.records.atomic import write_atomic

LEVEL = 0.05
"""Of a corrected p below which a suite is said to have changed."""

_NOT_IN_NAMES = re.compile(r"[^a-z0-9_]")


@dataclass(frozen=True, slots=True)
class SuiteChange:
    """Means over the prompts that both models have a score of; higher is better. `low` to `high`: the gain, 95 %."""

    suite: str
    part: str  # a slice of it, as "topic: billing"; "": all of it
    unit: str
    prompts: int
    failed: int  # prompts without a grade of the trained model
    before: float
    after: float
    gain: float
    low: float | None  # None: too few prompts changed, and what scores are possible is not known
    high: float | None
    p: float | None  # of no change, corrected for the number of suites or of slices; None: too few prompts to say

    @property
    def worse(self) -> bool:
        """Surely."""
        return self.p is not None and self.p < LEVEL and self.gain < 0

    @property
    def better(self) -> bool:
        """Surely."""
        return self.p is not None and self.p < LEVEL and self.gain > 0

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.suite}, {self.part}" if self.part else self.suite

    def words(self) -> str:
        """`arithmetic: 0.42 to 0.31 (-0.11, 95 % interval -0.18 to -0.04, p 0.004)`."""
        interval = (
            "" if self.low is None or self.high is None else f", 95 % interval {self.low:+.3f} to {self.high:+.3f}"
        )
        p = "too few to say" if self.p is None else f"p {self.p:.2g}"
        return f"{self.name}: {self.before:.3f} to {self.after:.3f} ({self.gain:+.3f}{interval}, {p})"


def write_changes(path: Path, changes: Sequence[SuiteChange]) -> None:
    """All suites and slices of a run."""
    write_atomic(path, json.dumps([asdict(one) for one in changes], ensure_ascii=False, indent=1) + "\n")


def read_changes(path: Path) -> tuple[SuiteChange, ...]:
    """As `write_changes` wrote them; none where there is no file: the run named no suites, or has not finished."""
    if not path.is_file():
        return ()
    return tuple(SuiteChange(**given) for given in json.loads(path.read_text(encoding="utf-8")))


def summary_figures(changes: Sequence[SuiteChange]) -> dict[str, float]:
    """For summary.json: of each suite, and how many suites and slices became worse."""
    found: dict[str, float] = {}
    for one in changes:
        if not one.part:
            name = f"suite_{_NOT_IN_NAMES.sub('_', one.suite.lower())}"
            given = {"before": one.before, "after": one.after, "gain_low": one.low, "gain_high": one.high, "p": one.p}
            found |= {f"{name}_{what}": value for what, value in given.items() if value is not None}
    if changes:
        found["suites_worse"] = float(sum(one.worse for one in changes if not one.part))
        found["suite_slices_worse"] = float(sum(one.worse for one in changes if one.part))
    return found


def sentences(changes: Sequence[SuiteChange]) -> Iterator[str]:
    """A line for each suite and slice that is worse, and a last one that says whether any is."""
    worse = [one for one in changes if one.worse]
    yield from (f"worse than before, {one.words()}" for one in worse)
    if not changes:
        return
    suites = [one for one in changes if not one.part]
    if worse:
        yield f"suites: worse than before on {', '.join(one.name for one in worse)}"
        return
    left = [f"{one.suite} {_most_lost(one)}" for one in suites if one.low is None or one.low < 0]
    better = [one.suite for one in suites if one.better]
    said = [f"better on {', '.join(better)}"] if better else []
    said += [f"not excluded is a loss on {', '.join(left)}"] if left else []
    yield "; ".join(["suites: none is worse than before", *said])


def _most_lost(one: SuiteChange) -> str:
    """What loss the data allow."""
    return "(how large is not known)" if one.low is None else f"of up to {-one.low:.3f}"
