"""`raylign feedback answers`: a model answers prompts in the manner of seeds and checks its answers; thumbs result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
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
from raylign.app.commands.seed_rows import answered_in, prompts_in
from raylign.conf.errors import DataError
from raylign.feedback.ai_answers import (
    RUBRIC,
    SHOWN,
    Example,
    Question,
    answer_event,
    check_rubric,
    new_answers,
    questions_of,
    read_answer,
    read_check,
    said,
    seeds_digest,
    shown_examples,
)
from raylign.feedback.ai_votes import Constitution, Redact
from raylign.feedback.clean.contamination import benchmark_texts
from raylign.records.model_names import short_model
from raylign.reward.judge import Rubric
from raylign.reward.samples import Sample

AT_ONCE = 250
"""Prompts between two writings of the events."""

CALLS = 2
"""Of one prompt, at most: its answer, and the check."""


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """What is wanted."""

    prompts: str  # rows with a prompt
    seeds: str  # rows with a prompt and its answer
    constitution: Path
    out: Path
    max_calls: int = 0  # new ones; 0: as many as there are
    benchmarks: Sequence[str] = ()
    near: float = 0.6
    ngram: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of it."""

    writer: str
    version: str
    prompts: int
    near: int  # to a seed's or an earlier one
    contaminated: int  # prompts
    asked: int  # new calls
    good: int
    bad: int
    cut: int  # replies without an end
    not_new: int  # answers that decline, repeat another, or overlap with a benchmark
    unreadable: int  # checks without a verdict
    failed: int  # prompts without a reply, asked again by the next call of the command
    why_failed: str
    left: int  # prompts that --max-calls left for another time


@dataclass(frozen=True, slots=True)
class _Checked:
    """An answer with what its check says."""

    question: Question
    answer: str
    check: str
    good: bool


@dataclass(slots=True)
class _Writing:
    """Both questions to the model, and what came of them so far."""

    writer: Asking
    checker: Asking
    seeds: Sequence[Example]
    benchmark: pl.Series
    settings: AnswerSettings
    redact: Redact
    answers: list[str] = field(default_factory=list)
    cut: int = 0
    not_new: int = 0
    unreadable: int = 0
    failed: int = 0

    @property
    def asked(self) -> int:
        """New calls."""
        return self.writer.asked + self.checker.asked

    def written(self, part: Sequence[Question]) -> list[tuple[Question, str]]:
        """The prompts that have an answer worth checking."""
        self.writer.ask([self._request(question) for question in part])
        made = []
        for question in part:
            reply = self.writer.reply(self._request(question))
            answer = None if reply is None else read_answer(reply)
            self.failed += reply is None
            self.cut += reply is not None and answer is None
            if answer is not None:
                made.append((question, answer))
        own, earlier = self.settings, len(self.answers)
        self.answers += [answer for _, answer in made]
        new = new_answers(self.answers, self.seeds, self.benchmark, near=own.near, ngram=own.ngram)[earlier:]
        self.not_new += int((~new).sum())
        return [one for one, kept in zip(made, new, strict=True) if kept]

    def checked(self, made: Sequence[tuple[Question, str]]) -> list[_Checked]:
        """Those whose check says something."""
        shown = self.redact([(question.shown, answer) for question, answer in made])
        samples = [sample_of(texts[0], texts[1]) for texts in shown]
        self.checker.ask(samples)
        found = []
        for (question, answer), sample in zip(made, samples, strict=True):
            reply = self.checker.reply(sample)
            good = None if reply is None else read_check(reply)
            self.failed += reply is None
            self.unreadable += reply is not None and good is None
            if reply is not None and good is not None:
                found.append(_Checked(question, answer, reply, good))
        return found

    def _request(self, question: Question) -> Sample:
        return sample_of(question.shown, shown_examples(self.seeds, question, seed=self.settings.seed))

    def calls(self, question: Question) -> int:
        """Most new calls about a prompt."""
        reply = self.writer.reply(self._request(question))
        if reply is None:
            return CALLS
        answer = read_answer(reply)
        [shown] = self.redact([(question.shown, answer or "")])
        return 0 if answer is None else self.checker.new_calls([sample_of(shown[0], shown[1])])


def answer_prompts(settings: AnswerSettings, who: Who, redact: Redact, tell: Tell) -> Answered:
    """Ask for an answer to every prompt that is new, have it checked, and write the thumbs.

    The same call asks the same, so what has been answered is not asked again. Raises UserError, ConfigError, DataError.
    """
    constitution = Constitution.read(settings.constitution)
    seeds = [Example(*texts) for texts in redact([(said(turns), text) for turns, text in answered_in(settings.seeds)])]
    if len(seeds) < SHOWN:
        raise DataError(f"{settings.seeds}: {len(seeds)} rows with an answer are too few to show {SHOWN}; give more.")
    prompts = prompts_in(settings.prompts)
    if not prompts:
        raise DataError(f"{settings.prompts}: no row has a prompt, so none is answered.")
    benchmark = benchmark_texts(settings.benchmarks)
    found = questions_of(prompts, seeds, benchmark, redact, near=settings.near, ngram=settings.ngram)
    out, name = settings.out, short_model(who.model)
    out.parent.mkdir(parents=True, exist_ok=True)
    events, done = list[dict[str, object]](), 0
    with open_model(who, out.with_name(f"{out.name}.asked"), "feedback answers", tell) as model:
        checks = rubric_of(check_rubric(constitution), f"--constitution {settings.constitution}")
        writer, checker = model.asking(Rubric.of(RUBRIC)), model.asking(checks, "checks")
        work = _Writing(writer, checker, seeds, benchmark, settings, redact)
        version = version_of(who, writer, checker, also=(seeds_digest(seeds), str(settings.seed)))
        for part in affordable_parts(
            found.questions, work.calls, lambda: work.asked, max_calls=settings.max_calls, at_once=AT_ONCE
        ):
            for one in work.checked(work.written(part)):
                events.append(
                    answer_event(one.question, one.answer, one.check, good=one.good, writer=name, version=version)
                )
            done += len(part)
            write_rows(out, events)
            tell(f"{done:,} of {len(found.questions):,} prompts")
    good = sum(event["thumb"] == 1 for event in events)
    return Answered(
        name, version, len(prompts), found.near, found.contaminated, work.asked, good, len(events) - good, work.cut,
        work.not_new, work.unreadable, work.failed, checker.why_failed or writer.why_failed,
        len(found.questions) - done,
    )  # fmt: skip


def require_answers(found: Answered, out: Path) -> None:
    """Raises DataError when none is good."""
    require_some(
        found.good, out, "no answer is new and good",
        "see the replies beside it (.asked), and give a stronger --model, other prompts or plainer principles",
    )  # fmt: skip


def answered_lines(found: Answered, out: Path) -> list[str]:
    """What came of it, for a terminal."""
    lines = [
        f"{found.writer}, version {found.version}: {found.asked:,} new calls",
        f"of {found.prompts:,} prompts {found.contaminated:,} overlap with a benchmark, {found.near:,} are near a "
        "seed's or an earlier one",
        f"{found.good:,} answers are good by its own check, {found.bad:,} are not; {found.not_new:,} decline, repeat "
        "another answer or overlap with a benchmark",
        f"{found.cut:,} replies have no end, {found.unreadable:,} checks no verdict",
    ]
    lines += unanswered_lines("prompts", found.failed, found.why_failed, found.left)
    return [*lines, f"events: {out}"] if found.good + found.bad else lines
