"""`raylign feedback judge`: a model chooses between the answers of a log by a constitution; its choices are events."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from raylign.app.commands.judge_open import Asker, Tell, Who, open_judge
from raylign.conf.errors import DataError, UserError
from raylign.feedback.ai_votes import SOURCE, Constitution, Pair, Verdict, ai_event, counts, pairs_to_judge, verdict
from raylign.feedback.build import read
from raylign.feedback.overrides import parse_settings
from raylign.feedback.source import Source
from raylign.feedback.trust.agreement import agreement, agreement_with_others
from raylign.feedback.trust.intervals import Estimate, wilson
from raylign.feedback.trust.judgements import judgements
from raylign.records.atomic import write_atomic
from raylign.records.model_names import short_model
from raylign.reward.judge import Judge, Rubric, RubricError
from raylign.reward.judge_cache import JudgeCache
from raylign.reward.samples import Sample

AT_ONCE = 250
"""Pairs between two writings of the events: what a stop in between costs is asked again, and answered by the cache."""


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Who judges, by what, and how much."""

    constitution: Path
    out: Path
    model: str  # a model of ours, or its name at `url`
    url: str = ""  # an endpoint of OpenAI's form; "": our own engine
    token_env: str = ""
    max_calls: int = 0  # new ones; 0: as many as there are
    max_new_tokens: int = 256
    max_concurrent: int = 8
    deadline_s: float = 7200.0
    run_root: Path = Path("runs")


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


def judge_pairs(source: Source, settings: JudgeSettings, tell: Tell) -> Judged:
    """Read logs, ask about every two answers twice, and write the events. Raises UserError, ConfigError, DataError."""
    constitution = Constitution.read(settings.constitution)
    log = read(source, parse_settings(source.overrides))
    pairs = pairs_to_judge(log.events)
    if not pairs:
        raise DataError(f"{', '.join(map(str, source.logs))}: no two answers stand side by side, so none is chosen.")
    settings.out.expanduser().parent.mkdir(parents=True, exist_ok=True)
    judge, asker, cache = _open(settings, constitution, tell)
    name, version = short_model(settings.model), _version(judge)
    chosen = _within(pairs, judge, cache, settings.max_calls)
    events: list[dict[str, object]] = []
    verdicts: list[Verdict] = []
    failed, why, asked = 0, "", 0
    for first in range(0, len(chosen), AT_ONCE):
        part = chosen[first : first + AT_ONCE]
        asked += sum(_new_calls(pair, judge, cache) for pair in part)
        reasons = asker.ask([sample for pair in part for sample in _samples(pair)])
        for pair in part:
            replies = [cache.get(judge.key(sample)) for sample in _samples(pair)]
            if replies[0] is None or replies[1] is None:
                failed, why = failed + 1, next(iter(reasons.values()), "no reply")
                continue
            said = verdict(replies[0], replies[1])
            verdicts.append(said)
            if said is not Verdict.UNREADABLE:
                events.append(ai_event(pair, said, replies[0], name, version))
        write_atomic(settings.out, "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events))
        tell(f"{min(first + AT_ONCE, len(chosen)):,} of {len(chosen):,} pairs")
    with_people, among = _agreement(log.events, settings.out, source) if events else (None, None)
    return Judged(
        judge=name, version=version, pairs=len(pairs), asked=asked, verdicts=counts(verdicts), failed=failed,
        why_failed=why, left=len(pairs) - len(chosen), with_people=with_people, among_people=among,
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
    if found.failed:
        lines.append(f"! {found.failed:,} pairs have no reply ({found.why_failed}); the same command asks them again")
    if found.left:
        lines.append(f"{found.left:,} pairs are left (--max-calls); the same command goes on")
    if found.with_people is None:
        lines.append("how far it agrees with people is not known: no pair that it decided was decided by them")
    else:
        agrees = f"agrees with people's choices on {_range(found.with_people)}"
        among = f"; two people agree on {_range(found.among_people)}" if found.among_people else ""
        lines.append(agrees + among)
        if found.with_people.low <= 0.5:
            lines.append("! that may be chance: do not build with these events")
    return [*lines, f"events: {out}"]


def _range(share: Estimate) -> str:
    return f"{100 * share.value:.0f} % of {share.count:,} pairs [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _open(settings: JudgeSettings, constitution: Constitution, tell: Tell) -> tuple[Judge, Asker, JudgeCache]:
    """The judge, who asks it, and what it has said before."""
    try:
        rubric = Rubric.of(constitution.rubric())
    except RubricError as error:
        raise UserError(f"--constitution {settings.constitution}: {error}.") from error
    who = Who(
        model=settings.model, url=settings.url, token_env=settings.token_env, max_new_tokens=settings.max_new_tokens,
        max_concurrent=settings.max_concurrent, deadline_s=settings.deadline_s, run_root=settings.run_root,
    )  # fmt: skip
    return open_judge(who, rubric, settings.out.with_name(f"{settings.out.name}.judged"), "feedback judge", tell)


def _version(judge: Judge) -> str:
    """Of model, constitution and question: what two sets of votes must share to be of one judge."""
    parts = [judge.model, judge.rubric.digest, judge.max_new_tokens]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _samples(pair: Pair) -> tuple[Sample, Sample]:
    """The pair as it is, and with the answers in each other's place."""
    asked = pair.conversation()
    straight, swapped = (
        Sample(asked, pair.answers(swapped=swapped), pair.turns, (), "", None, {}) for swapped in (False, True)
    )
    return straight, swapped


def _new_calls(pair: Pair, judge: Judge, cache: JudgeCache) -> int:
    return sum(cache.get(judge.key(sample)) is None for sample in _samples(pair))


def _within(pairs: Sequence[Pair], judge: Judge, cache: JudgeCache, most: int) -> list[Pair]:
    """The pairs that have been asked about, and of the others, in order, those that `most` new calls are enough for."""
    if not most:
        return list(pairs)
    chosen, calls = [], 0
    for pair in pairs:
        new = _new_calls(pair, judge, cache)
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
