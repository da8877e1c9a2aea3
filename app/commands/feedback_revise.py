"""`raylign feedback revise`: a model revises answers by a constitution; revisions that it prefers are corrections."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.app.commands.judge_open import Asker, Tell, Who, open_judge
from raylign.conf.errors import DataError, UserError
from raylign.feedback.ai_revisions import (
    Answer,
    Revision,
    answers_to_revise,
    read_revision,
    revision_event,
    revision_rubric,
)
from raylign.feedback.ai_votes import Constitution, Pair, Verdict, verdict
from raylign.feedback.build import read
from raylign.feedback.overrides import parse_settings
from raylign.feedback.source import Source
from raylign.records.atomic import write_atomic
from raylign.records.model_names import short_model
from raylign.reward.judge import Judge, Rubric, RubricError
from raylign.reward.judge_cache import JudgeCache
from raylign.reward.samples import Sample

AT_ONCE = 250
"""Answers between two writings of the events."""

CALLS = 3
"""Of one answer, at most: its revision, and the choice between both with them in either place."""


@dataclass(frozen=True, slots=True)
class Revised:
    """What came of it."""

    judge: str
    version: str
    answers: int
    asked: int  # new calls
    kept: int
    as_good: int  # replies without another answer
    not_better: int  # revisions that the same model does not prefer in both places
    failed: int  # answers without a reply, asked again by the next call of the command
    why_failed: str
    left: int  # answers that --max-calls left for another time


@dataclass(slots=True)
class _Tally:
    asked: int = 0
    as_good: int = 0
    not_better: int = 0
    failed: int = 0
    why: str = ""


def revise_answers(
    source: Source, constitution_file: Path, out: Path, who: Who, *, everything: bool, max_calls: int, tell: Tell
) -> Revised:
    """Ask about every disliked answer (or every judged one), and write the corrections to `out`.

    `max_calls`: most new calls; an answer is asked about only if all of its calls are within; 0: no bound.
    Raises UserError, ConfigError, DataError.
    """
    constitution = Constitution.read(constitution_file)
    settings = parse_settings(source.overrides)
    answers = answers_to_revise(read(source, settings).events, everything=everything, bad_rating=settings.ratings.bad)
    if not answers:
        what = "judged" if everything else "disliked"
        raise DataError(f"{', '.join(map(str, source.logs))}: no answer is {what}, so none is revised.")
    out.parent.mkdir(parents=True, exist_ok=True)
    kept_in = out.with_name(f"{out.name}.judged")
    reviser = _Asked(revision_rubric(constitution), kept_in / "revisions", who, constitution_file, tell)
    chooser = _Asked(constitution.rubric(), kept_in, who, constitution_file, tell)
    parts = [reviser.judge.model, reviser.judge.rubric.digest, chooser.judge.rubric.digest, who.max_new_tokens]
    name, version = short_model(who.model), hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
    tally, events, done = _Tally(), list[dict[str, object]](), 0
    while done < len(answers):
        room = max_calls - tally.asked if max_calls else CALLS * len(answers)
        part = _within(answers[done : done + AT_ONCE], reviser, chooser, room)
        if not part:
            break
        events += [revision_event(a, r, name, version) for a, r in _better(part, reviser, chooser, tally)]
        done += len(part)
        write_atomic(out, "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events))
        tell(f"{done:,} of {len(answers):,} answers")
    return Revised(
        name, version, len(answers), tally.asked, len(events), tally.as_good, tally.not_better, tally.failed, tally.why,
        len(answers) - done,
    )  # fmt: skip


def revised_lines(found: Revised, out: Path) -> list[str]:
    """What came of it, for a terminal."""
    lines = [
        f"{found.judge}, version {found.version}: {found.asked:,} new calls",
        f"{found.kept:,} of {found.answers:,} answers have a revision that it prefers with both in either place; "
        f"{found.not_better:,} revisions it does not, {found.as_good:,} replies hold no other answer",
    ]
    if found.failed:
        lines.append(f"! {found.failed:,} answers have no reply ({found.why_failed}); the same command asks them again")
    if found.left:
        lines.append(f"{found.left:,} answers are left (--max-calls); the same command goes on")
    return [*lines, f"events: {out}"]


class _Asked:
    """One request with its replies."""

    def __init__(self, rubric: str, kept: Path, who: Who, constitution: Path, tell: Tell) -> None:
        try:
            text = Rubric.of(rubric)
        except RubricError as error:
            raise UserError(f"--constitution {constitution}: {error}.") from error
        kept.mkdir(parents=True, exist_ok=True)
        self.judge: Judge
        self._asker: Asker
        self._cache: JudgeCache
        self.judge, self._asker, self._cache = open_judge(who, text, kept, "feedback revise", tell)

    def reply(self, sample: Sample) -> str | None:
        """Kept already, or None."""
        return self._cache.get(self.judge.key(sample))

    def ask(self, samples: Sequence[Sample], tally: _Tally) -> None:
        """Those that have no reply yet."""
        new = {self.judge.key(sample) for sample in samples if self.reply(sample) is None}
        tally.asked += len(new)
        if new and (reasons := self._asker.ask(samples)):
            tally.why = next(iter(reasons.values()))


def _better(part: Sequence[Answer], reviser: _Asked, chooser: _Asked, tally: _Tally) -> list[tuple[Answer, Revision]]:
    """The answers whose revision is preferred in both places."""
    reviser.ask([_sample(answer) for answer in part], tally)
    made = []
    for answer in part:
        reply = reviser.reply(_sample(answer))
        if reply is None:
            tally.failed += 1
        elif (revision := read_revision(reply, answer.text)) is None:
            tally.as_good += 1
        else:
            made.append((answer, revision))
    chooser.ask([sample for answer, revision in made for sample in _both(answer.against(revision.text))], tally)
    kept = []
    for answer, revision in made:
        straight, swapped = (chooser.reply(sample) for sample in _both(answer.against(revision.text)))
        if straight is None or swapped is None:
            tally.failed += 1
        elif verdict(straight, swapped) is Verdict.B:
            kept.append((answer, revision))
        else:
            tally.not_better += 1
    return kept


def _within(part: Sequence[Answer], reviser: _Asked, chooser: _Asked, room: int) -> list[Answer]:
    """From the first on, the answers that `room` new calls are enough for, whatever their revisions will be."""
    chosen = []
    for answer in part:
        room -= _calls(answer, reviser, chooser)
        if room < 0:
            break
        chosen.append(answer)
    return chosen


def _calls(answer: Answer, reviser: _Asked, chooser: _Asked) -> int:
    """Most new calls about an answer."""
    reply = reviser.reply(_sample(answer))
    if reply is None:
        return CALLS
    revision = read_revision(reply, answer.text)
    return 0 if revision is None else sum(chooser.reply(s) is None for s in _both(answer.against(revision.text)))


def _sample(answer: Answer) -> Sample:
    return Sample(answer.conversation(), answer.shown(), answer.turns, (), "", None, {})


def _both(pair: Pair) -> tuple[Sample, Sample]:
    first, second = (
        Sample(pair.conversation(), pair.answers(swapped=swapped), pair.turns, (), "", None, {})
        for swapped in (False, True)
    )
    return first, second
