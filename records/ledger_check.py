"""Whether a run's ledger is clean: every sample ended exactly once, and metrics and samples files say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raylign.data.types import SampleKey
from raylign.records.ledger import CUT, LedgerEntry, LedgerHistory, read_ledger
from raylign.records.metrics_log import MetricHistory, read_history
from raylign.records.run_folder import RunPaths
from raylign.records.samples import read_samples

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """What was found. `problems` is empty for a clean ledger."""

    steps: int
    samples: int
    outcomes: tuple[tuple[str, int], ...]  # "trained", "filtered: why", "failed: why" and their counts
    starts: int
    done_again: int
    other_samples: int
    problems: tuple[str, ...]

    def sentences(self) -> Iterator[str]:
        """For a person."""
        yield (
            f"{self.samples} samples in {self.steps} steps, each ended once"
            if not self.problems
            else (f"{self.samples} samples in {self.steps} steps")
        )
        for outcome, count in self.outcomes:
            yield f"  {count} {outcome}"
        if self.starts > 1:
            with_what = f", {self.other_samples} of them with other samples" if self.other_samples else ""
            yield f"{self.starts} starts; {self.done_again} steps were done again{with_what}"
        yield from (f"problem: {problem}" for problem in self.problems)


def check_ledger(folder: Path, *, max_staleness: int | None = None) -> LedgerReport | None:
    """Compare ledger, metrics and samples of a run; None when it has no ledger.

    `max_staleness`: steps that samples may be older than the weights they train; None: not looked at.
    """
    paths = RunPaths(folder)
    history = read_ledger(paths.ledger)
    if not history.starts and not history.damage:
        return None
    problems = [
        *history.damage,
        *_sequence(history),
        *_once(history.entries),
        *_every_prompt(history.entries),
        *_versions(history.entries, max_staleness),
        *_as_in_metrics(history.entries, read_history(paths.metrics)),
        *_as_in_samples(history.entries, paths),
    ]
    counts: Counter[str] = Counter()
    for entry in history.entries:
        counts["trained"] += len(entry.trained)
        counts.update({f"filtered: {why}": len(keys) for why, keys in entry.filtered.items()})
        counts.update({f"failed: {why}": len(keys) for why, keys in entry.failed.items()})
    return LedgerReport(
        steps=len(history.entries),
        samples=sum(counts.values()),
        outcomes=tuple(counts.items()),
        starts=history.starts,
        done_again=history.done_again,
        other_samples=history.other_samples,
        problems=tuple(problems),
    )


def _sequence(history: LedgerHistory) -> Iterator[str]:
    steps = [entry.step for entry in history.entries]
    if steps != list(range(1, len(steps) + 1)):
        yield f"the steps are not 1 to {len(steps)}, each once: {_some(steps)}"


def _once(entries: Iterable[LedgerEntry]) -> Iterator[str]:
    """No sample ends twice, in one step or in two."""
    ended: dict[SampleKey, int] = {}
    for entry in entries:
        for key, outcome in entry.outcomes():
            if key in ended:
                yield f"{_name(key)} is {outcome} in step {entry.step} and ended in step {ended[key]} already"
            ended[key] = entry.step


def _every_prompt(entries: Iterable[LedgerEntry]) -> Iterator[str]:
    """As many prompts ended as were drawn by then, each with all of its samples."""
    samples: dict[tuple[int, str], set[int]] = {}
    width = 0
    for entry in entries:
        for key, _ in entry.outcomes():
            samples.setdefault((key.epoch, key.prompt_id), set()).add(key.k)
        width = width or max((len(ks) for ks in samples.values()), default=0)
        if {"epoch", "position", "size"} <= entry.data.keys():
            drawn = int(entry.data["epoch"]) * int(entry.data["size"]) + int(entry.data["position"])
            if drawn != len(samples):
                yield f"after step {entry.step} {drawn} prompts were drawn and {len(samples)} have ended"
    uneven = [f"{epoch}/{prompt}" for (epoch, prompt), ks in samples.items() if ks != set(range(width))]
    if uneven:
        yield f"not all {width} samples of these prompts have ended: {_some(uneven)}"


def _versions(entries: Iterable[LedgerEntry], max_staleness: int | None) -> Iterator[str]:
    """No sample is of weights that were not there yet, nor of older ones than the settings allow."""
    for entry in entries:
        oldest, newest = entry.versions
        if newest > entry.step - 1:
            yield f"step {entry.step} trained on samples of version {newest}, which it has made itself"
        if max_staleness is not None and oldest < entry.step - 1 - max_staleness:
            yield f"step {entry.step} trained on samples of version {oldest}, older than rollout.max_staleness allows"


def _as_in_metrics(entries: Iterable[LedgerEntry], history: MetricHistory) -> Iterator[str]:
    """The totals of metrics.jsonl. The newest entry may be without a line: the run was killed between the two."""
    rows = {row.step: row.values for row in history.rows}
    totals = {"ledger/trained": 0, "ledger/failed": 0, "ledger/filtered": 0, "ledger/masked": 0}
    listed = tuple(entries)
    for entry in listed:
        cut = len(entry.filtered.get(CUT, ()))
        totals["ledger/trained"] += len(entry.trained)
        totals["ledger/failed"] += sum(map(len, entry.failed.values()))
        totals["ledger/masked"] += cut
        totals["ledger/filtered"] += sum(map(len, entry.filtered.values())) - cut
        row = rows.get(entry.step)
        if row is None:
            if entry is not listed[-1]:
                yield f"step {entry.step} is in the ledger and not in metrics.jsonl"
            continue
        for name, total in totals.items():
            if name in row and row[name] != total:
                yield f"step {entry.step}: {name} is {row[name]} in metrics.jsonl and {total} in the ledger"
    beyond = [step for step in rows if step > len(listed)]
    if beyond:
        yield f"steps in metrics.jsonl and not in the ledger: {_some(beyond)}"


def _as_in_samples(entries: Iterable[LedgerEntry], paths: RunPaths) -> Iterator[str]:
    """A step's file holds the samples that came to its end, and failed the same ones."""
    for entry in entries:
        file = paths.samples_file(entry.step)
        if not file.exists():
            continue
        dropped = {key for why, keys in entry.filtered.items() if why != CUT for key in keys}
        mine = {key: outcome == "failed" for key, outcome in entry.outcomes() if key not in dropped}
        theirs = {row.key: row.reward_failure is not None for row in read_samples(file)}
        if mine != theirs:
            odd = [_name(key) for key in sorted(mine.keys() ^ theirs.keys())] or ["the failed ones differ"]
            yield f"{file.name} holds other samples than the ledger's step {entry.step}: {_some(odd)}"


def _name(key: SampleKey) -> str:
    return f"sample {key.k} of {key.epoch}/{key.prompt_id}"


def _some(things: Iterable[object]) -> str:
    listed = list(map(str, things))
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
