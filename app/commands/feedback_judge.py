"""`raylign feedback judge`: a model chooses between the answers of a log by a constitution; its choices are events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from raylign.app.commands.judge_open import (
    Asking,
    Tell,
    Who,
    open_model,
    require_some,
    rubric_of,
    sample_of,
    unanswered_lines,
    version_of,
    write_rows,
)
from raylign.conf.errors import DataError
from raylign.feedback.ai_votes import SOURCE, Constitution, Pair, Verdict, ai_event, counts, pairs_to_judge, verdict
from raylign.feedback.build import read
from raylign.feedback.overrides import parse_settings
from raylign.feedback.privacy import redactor_of
from raylign.feedback.source import Source
from raylign.feedback.trust.agreement import agreement, agreement_with_others
from raylign.feedback.trust.intervals import Estimate, wilson
from raylign.feedback.trust.judgements import judgements
from raylign.records.model_names import short_model
from raylign.reward.samples import Sample

AT_ONCE = 250
"""Pairs between two writings of the events: what a stop in between costs is asked again, and answered by the cache."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of it. Agreements are over pairs that people judged with a clear choice."""

    judge: str
    version: str
    pairs: int
    asked: int  # new calls
    verdicts: Mapping[Verdict, int]
    failed: int  # pairs without a reply, asked again by the next call of the command
    why_failed: str
    left: int  # pairs that --max-calls left for another time
    with_people: Estimate | None
    among_people: Estimate | None


def judge_pairs(source: Source, constitution_file: Path, out: Path, who: Who, *, max_calls: int, tell: Tell) -> Judged:
    """Read logs, ask about every two answers twice, and write the events to `out`.

    `max_calls`: most new calls; a pair is asked about only if both are within; 0: no bound.
    Raises UserError, ConfigError, DataError.
    """
    constitution = Constitution.read(constitution_file)
    settings = parse_settings(source.overrides)
    log = read(source, settings)
    pairs = pairs_to_judge(log.events, redactor_of(settings.privacy).shown)
    if not pairs:
        raise DataError(f"{', '.join(map(str, source.logs))}: no two answers stand side by side, so none is chosen.")
    out.parent.mkdir(parents=True, exist_ok=True)
    name, events, verdicts, failed = short_model(who.model), list[dict[str, object]](), list[Verdict](), 0
    with open_model(who, out.with_name(f"{out.name}.judged"), "feedback judge", tell) as model:
        asking = model.asking(rubric_of(constitution.rubric(), f"--constitution {constitution_file}"))
        version = version_of(who, asking)
        chosen = _within(pairs, asking, max_calls)
        for first in range(0, len(chosen), AT_ONCE):
            part = chosen[first : first + AT_ONCE]
            asking.ask([sample for pair in part for sample in both_ways(pair)])
            for pair in part:
                straight, swapped = (asking.reply(sample) for sample in both_ways(pair))
                if straight is None or swapped is None:
                    failed += 1
                    continue
                said = verdict(straight, swapped)
                verdicts.append(said)
                if said is not Verdict.UNREADABLE:
                    events.append(ai_event(pair, said, straight, name, version))
            write_rows(out, events)
            tell(f"{min(first + AT_ONCE, len(chosen)):,} of {len(chosen):,} pairs")
    with_people, among = _agreement(log.events, out, source) if events else (None, None)
    return Judged(
        judge=name, version=version, pairs=len(pairs), asked=asking.asked, verdicts=counts(verdicts), failed=failed,
        why_failed=asking.why_failed, left=len(pairs) - len(chosen), with_people=with_people, among_people=among,
    )  # fmt: skip


def both_ways(pair: Pair) -> tuple[Sample, Sample]:
    """The pair as it is, and with the answers in each other's place."""
    straight, swapped = (
        sample_of(pair.conversation, pair.answers(swapped=swapped), pair.turns) for swapped in (False, True)
    )
    return straight, swapped


def require_choices(found: Judged, out: Path) -> None:
    """Raises DataError when no pair has a clear choice."""
    number = found.verdicts
    require_some(
        number[Verdict.A] + number[Verdict.B], out, "no pair has a clear choice",
        "see the replies beside it (.judged), and give a stronger --model or plainer principles",
    )  # fmt: skip


def judged_lines(found: Judged, out: Path) -> list[str]:
    """What came of it, for a terminal."""
    number = found.verdicts
    clear = number[Verdict.A] + number[Verdict.B]
    both = clear + number[Verdict.SWAYED] + number[Verdict.TIE]
    lines = [
        f"{found.judge}, version {found.version}: {found.asked:,} new calls",
        f"{clear:,} of {both + number[Verdict.UNREADABLE]:,} pairs have a clear choice; {number[Verdict.SWAYED]:,} "
        f"changed with the order of the answers, {number[Verdict.TIE]:,} were called a tie, "
        f"{number[Verdict.UNREADABLE]:,} could not be read",
    ]
    lines += unanswered_lines("pairs", found.failed, found.why_failed, found.left)
    if found.with_people is None:
        lines.append("how far it agrees with people is not known: no pair that it decided was decided by them")
    else:
        agrees = f"agrees with people's choices on {_range(found.with_people)}"
        among = f"; two people agree on {_range(found.among_people)}" if found.among_people else ""
        lines.append(agrees + among)
        if found.with_people.low <= 0.5:
            lines.append("! that may be chance: do not build with these events")
    return [*lines, f"events: {out}"] if both else lines


def _range(share: Estimate) -> str:
    return f"{100 * share.value:.0f} % of {share.count:,} pairs [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _within(pairs: Sequence[Pair], asking: Asking, most: int) -> list[Pair]:
    """The pairs that have been asked about, and of the others, in order, those that `most` new calls are enough for."""
    if not most:
        return list(pairs)
    chosen, calls = [], 0
    for pair in pairs:
        new = asking.new_calls(both_ways(pair))
        if calls + new <= most:
            calls += new
            chosen.append(pair)
    return chosen


def _agreement(events: pl.DataFrame, out: Path, source: Source) -> tuple[Estimate | None, Estimate | None]:
    """The judge's with people, and people's with each other, where both named a winner."""
    people = events.filter(pl.col("source") != SOURCE)
    own = read(Source(logs=(out,), format="native", overrides=source.overrides), parse_settings(source.overrides))
    name = own.events["annotator_hash"][0]
    both = judgements(pl.concat([people, own.events]))
    mine = agreement_with_others(both).filter(pl.col("rater") == name)
    found = wilson(float(mine["agree"][0]), int(mine["shared"][0])) if mine.height else None
    return found, agreement(judgements(people)).agree_decided
