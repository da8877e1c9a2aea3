"""`raylign feedback revise`: a model revises answers by a constitution; revisions that it prefers are corrections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raylign.app.commands.feedback_judge import both_ways
from raylign.app.commands.judge_open import (
    Asking,
    Tell,
    Who,
    affordable_parts,
    open_model,
    require_some,
    rubric_of,
    sample_of,
    unanswered_lines,
    version_of,
    write_rows,
)
from raylign.conf.errors import DataError
from raylign.feedback.ai_revisions import (
    Answer,
    Revision,
    answers_to_revise,
    pairs_of,
    read_revision,
    revision_event,
    revision_rubric,
)
from raylign.feedback.ai_votes import Constitution, Pair, Redact, Verdict, verdict
from raylign.feedback.build import read
from raylign.feedback.overrides import parse_settings
from raylign.feedback.privacy import redactor_of
from raylign.feedback.source import Source
from raylign.records.model_names import short_model
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


def revise_answers(
    source: Source, constitution_file: Path, out: Path, who: Who, *, everything: bool, max_calls: int, tell: Tell
) -> Revised:
    """Ask about every disliked answer (or every judged one), and write the corrections to `out`.

    `max_calls`: most new calls; an answer is asked about only if all of its calls are within; 0: no bound.
    Raises UserError, ConfigError, DataError.
    """
    constitution = Constitution.read(constitution_file)
    settings = parse_settings(source.overrides)
    redact = redactor_of(settings.privacy).shown
    events = read(source, settings).events
    answers = answers_to_revise(events, redact, everything=everything, bad_rating=settings.ratings.bad)
    if not answers:
        what = "judged" if everything else "disliked"
        raise DataError(f"{', '.join(map(str, source.logs))}: no answer is {what}, so none is revised.")
    out.parent.mkdir(parents=True, exist_ok=True)
    name, corrections, done = short_model(who.model), list[dict[str, object]](), 0
    with open_model(who, out.with_name(f"{out.name}.judged"), "feedback revise", tell) as model:
        named = f"--constitution {constitution_file}"
        reviser = model.asking(rubric_of(revision_rubric(constitution), named), "revisions")
        work = _Revising(reviser, model.asking(rubric_of(constitution.rubric(), named)), redact)
        version = version_of(who, work.reviser, work.chooser)
        for part in affordable_parts(answers, work.calls, lambda: work.asked, max_calls=max_calls, at_once=AT_ONCE):
            corrections += [revision_event(a, r, name, version) for a, r in work.better(part)]
            done += len(part)
            write_rows(out, corrections)
            tell(f"{done:,} of {len(answers):,} answers")
    return Revised(
        name, version, len(answers), work.asked, len(corrections), work.as_good, work.not_better, work.failed,
        work.why_failed, len(answers) - done,
    )  # fmt: skip


def require_revisions(found: Revised, out: Path) -> None:
    """Raises DataError when none is kept."""
    require_some(
        found.kept, out, "no revision is preferred to its answer in both places",
        "see the replies beside it (.judged), and give a stronger --model, more answers (--all) or plainer principles",
    )  # fmt: skip


def revised_lines(found: Revised, out: Path) -> list[str]:
    """What came of it, for a terminal."""
    lines = [
        f"{found.judge}, version {found.version}: {found.asked:,} new calls",
        f"{found.kept:,} of {found.answers:,} answers have a revision that it prefers with both in either place; "
        f"{found.not_better:,} revisions it does not, {found.as_good:,} replies hold no other answer",
    ]
    lines += unanswered_lines("answers", found.failed, found.why_failed, found.left)
    return [*lines, f"events: {out}"] if found.kept else lines


@dataclass(slots=True)
class _Revising:
    """Both questions, and what came of the answers so far."""

    reviser: Asking
    chooser: Asking
    redact: Redact
    as_good: int = 0
    not_better: int = 0
    failed: int = 0
    _pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """New calls."""
        return self.reviser.asked + self.chooser.asked

    @property
    def why_failed(self) -> str:
        """The last reason."""
        return self.chooser.why_failed or self.reviser.why_failed

    def better(self, part: Sequence[Answer]) -> list[tuple[Answer, Revision]]:
        """The answers whose revision is preferred in both places."""
        self.reviser.ask([_sample(answer) for answer in part])
        made = []
        for answer in part:
            reply = self.reviser.reply(_sample(answer))
            if reply is None:
                self.failed += 1
            elif (revision := read_revision(reply, answer.text)) is None:
                self.as_good += 1
            else:
                made.append((answer, revision))
        checks = self._checks(made)
        self.chooser.ask([sample for both in checks for sample in both])
        kept = []
        for (answer, revision), both in zip(made, checks, strict=True):
            straight, swapped = map(self.chooser.reply, both)
            if straight is None or swapped is None:
                self.failed += 1
            elif verdict(straight, swapped) is Verdict.B:
                kept.append((answer, revision))
            else:
                self.not_better += 1
        return kept

    def calls(self, answer: Answer) -> int:
        """Most new calls about an answer."""
        reply = self.reviser.reply(_sample(answer))
        if reply is None:
            return CALLS
        revision = read_revision(reply, answer.text)
        return 0 if revision is None else self.chooser.new_calls(self._checks([(answer, revision)])[0])

    def _checks(self, made: Sequence[tuple[Answer, Revision]]) -> list[tuple[Sample, Sample]]:
        """Each answer beside its revision, both ways round."""
        new = [one for one in made if (one[0].answer_id, one[1].text) not in self._pairs]
        for (answer, revision), pair in zip(new, pairs_of(new, self.redact), strict=True):
            self._pairs[answer.answer_id, revision.text] = pair
        return [both_ways(self._pairs[answer.answer_id, revision.text]) for answer, revision in made]


def _sample(answer: Answer) -> Sample:
    return sample_of(answer.conversation, answer.shown, answer.turns)
