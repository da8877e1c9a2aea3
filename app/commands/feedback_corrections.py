"""`raylign feedback corrections`: a model tells which users' turns correct the answer before them, beside the rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from raylign.app.commands.feedback_turn_head import fitted_head
from raylign.app.commands.judge_open import (
    Asking,
    Tell,
    Who,
    open_model,
    sample_of,
    unanswered_lines,
    version_of,
)
from raylign.conf.errors import UserError
from raylign.feedback.build import read
from raylign.feedback.clean.personal_data import hide_ids, redact_text
from raylign.feedback.corrections import is_correction, turns_to_judge
from raylign.feedback.judged_turns import (
    LABELLED,
    QUESTION,
    JudgedTurns,
    LabelledTurn,
    Tally,
    Turn,
    read_labelled,
    read_reply,
    tally,
)
from raylign.feedback.overrides import parse_settings
from raylign.feedback.privacy import redactor_of
from raylign.feedback.settings import BuildSettings
from raylign.feedback.source import Source
from raylign.feedback.trust.intervals import wilson
from raylign.feedback.working import working_frame
from raylign.records.atomic import write_atomic
from raylign.records.model_names import short_model
from raylign.reward.judge import Rubric
from raylign.reward.samples import Sample

AT_ONCE = 1000
"""Turns between two words on how far it is."""


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it."""

    judge: str
    version: str
    labelled: int
    rules: Tally  # on the labelled turns
    model: Tally
    together: Tally  # what either calls a correction
    turns: int  # of the logs, that make a row if they correct
    by_rules: int  # of those
    by_model: int
    by_both: int
    asked: int  # new calls
    unreadable: int  # replies that are neither yes nor no; they count as no
    failed: int  # turns of the logs without a reply
    why_failed: str
    left: int  # turns that --max-calls left for another time
    fitted: int = 0  # labelled turns that a head was fitted to; 0: the model was asked


@dataclass(slots=True)
class _Questions:
    """What a model says of turns."""

    asking: Asking
    unreadable: int = 0

    def ask(self, turns: Sequence[Turn]) -> list[bool | None]:
        """Whether each corrects; None where there is no reply."""
        self.asking.ask([_sample(turn) for turn in turns])
        replies = [self.asking.reply(_sample(turn)) for turn in turns]
        said = [None if reply is None else read_reply(reply) for reply in replies]
        self.unreadable += sum(reply is not None and one is None for reply, one in zip(replies, said, strict=True))
        return [None if reply is None else bool(one) for reply, one in zip(replies, said, strict=True)]


def find_corrections_by_model(
    source: Source, out: Path, who: Who, tell: Tell, *, labelled: Path | None = None, max_calls: int = 0
) -> Found:
    """Ask about a labelled sample and about the turns of logs, and write the verdicts to `out`.

    Raises UserError (also when a labelled turn has no reply), ConfigError, DataError.
    """
    sample = read_labelled(labelled or LABELLED)
    frame = _turns(source) if source.logs else None
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = list(frame.iter_rows(named=True)) if frame is not None else []
    turns = [Turn(row["question"], row["answer"], row["text"]) for row in rows]
    verdicts: list[bool | None] = []
    with open_model(who, out.with_name(f"{out.name}.asked"), "feedback corrections", tell) as model:
        asking = model.asking(Rubric.of(QUESTION))
        questions = _Questions(asking)
        called = questions.ask([one.turn for one in sample])
        if None in called:
            raise UserError(
                f"{called.count(None)} labelled turns have no reply ({asking.why_failed}); the same command asks again."
            )
        chosen = _within(turns, asking, max_calls)
        for first in range(0, len(chosen), AT_ONCE):
            verdicts += questions.ask([turns[at] for at in chosen[first : first + AT_ONCE]])
            tell(f"{min(first + AT_ONCE, len(chosen)):,} of {len(chosen):,} turns")
    by_rules = _by_rules(sample)
    measured = tally(zip(map(bool, called), (one.corrects for one in sample), strict=True))
    name, version = short_model(who.model), version_of(who, asking)
    told = [(turns[at].key, rows[at]["event_id"], said) for at, said in zip(chosen, verdicts, strict=True)
            if said is not None]  # fmt: skip
    write_atomic(out, JudgedTurns(name, version, measured, tuple(told)).to_lines())
    corrects = {key for key, _, said in told if said}
    ruled = {turn.key for turn, row in zip(turns, rows, strict=True) if row["by_rules"]}
    return Found(
        judge=name, version=version, labelled=len(sample),
        rules=tally(zip(by_rules, (one.corrects for one in sample), strict=True)), model=measured,
        together=tally((bool(model) or rule, one.corrects)
                       for model, rule, one in zip(called, by_rules, sample, strict=True)),
        turns=len(turns), by_rules=len(ruled), by_model=len(corrects), by_both=len(ruled & corrects),
        asked=asking.asked, unreadable=questions.unreadable, failed=verdicts.count(None),
        why_failed=asking.why_failed, left=len(turns) - len(chosen),
    )  # fmt: skip


def find_corrections_by_head(
    source: Source, out: Path, who: Who, train: str, tell: Tell, *, labelled: Path | None = None
) -> Found:
    """The same by a head on the model's hidden states, fitted to the turns that `train` names; nothing is asked.

    Raises UserError, DataError.
    """
    if who.url:
        raise UserError("--train needs the model's hidden states, which an endpoint (--url) does not give.")
    sample = read_labelled(labelled or LABELLED)
    frame = _turns(source) if source.logs else None
    head = fitted_head(who.model, who.run_root, train, sample, tell)
    out.parent.mkdir(parents=True, exist_ok=True)
    truth = [one.corrects for one in sample]
    called, by_rules = head.ask([one.turn for one in sample]), _by_rules(sample)
    measured = tally(zip(called, truth, strict=True))
    rows = list(frame.iter_rows(named=True)) if frame is not None else []
    turns = [Turn(row["question"], row["answer"], row["text"]) for row in rows]
    verdicts = head.ask(turns)
    told = tuple((turn.key, row["event_id"], said) for turn, row, said in zip(turns, rows, verdicts, strict=True))
    name = short_model(who.model)
    write_atomic(out, JudgedTurns(name, head.version, measured, told).to_lines())
    corrects = {key for key, _, said in told if said}
    ruled = {turn.key for turn, row in zip(turns, rows, strict=True) if row["by_rules"]}
    either = (model or rule for model, rule in zip(called, by_rules, strict=True))
    return Found(
        judge=name, version=head.version, labelled=len(sample), rules=tally(zip(by_rules, truth, strict=True)),
        model=measured, together=tally(zip(either, truth, strict=True)), turns=len(turns), by_rules=len(ruled),
        by_model=len(corrects), by_both=len(ruled & corrects), asked=0, unreadable=0, failed=0, why_failed="", left=0,
        fitted=head.fitted,
    )  # fmt: skip


def found_lines(found: Found, out: Path) -> list[str]:
    """What came of it, for a terminal."""
    lines = [
        f"{found.judge}, version {found.version}: "
        + (f"a head fitted to {found.fitted:,} turns" if found.fitted else f"{found.asked:,} new calls"),
        f"On {found.labelled:,} labelled turns:",
        f"  the rules         {_measured(found.rules)}",
        f"  the model         {_measured(found.model)}",
        f"  either of them    {_measured(found.together)}",
    ]
    if found.turns:
        lines.append(
            f"In these logs {found.turns:,} turns stand between an answer and one that was accepted; the rules call "
            f"{found.by_rules:,} of them corrections, the model {found.by_model:,}, both {found.by_both:,}."
        )
    if found.unreadable:
        lines.append(f"! {found.unreadable:,} replies are neither yes nor no; they count as no")
    lines += unanswered_lines("turns", found.failed, found.why_failed, found.left)
    wanted, precision = BuildSettings().corrections.min_precision, found.model.precision
    if precision is None or precision < wanted:
        lines.append(f"! a build refuses this judge: its precision is below {wanted:g} (corrections.min_precision)")
    return [*lines, f"judged turns: {out}"]


def _measured(told: Tally) -> str:
    """Precision and recall with 95 % intervals (Wilson)."""

    def share(part: int, of: int) -> str:
        found = wilson(part, of)
        if found is None:
            return "not known"
        return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}] ({part} of {of})"

    called, corrections = told.right + told.wrong, told.right + told.missed
    return f"precision {share(told.right, called)}, recall {share(told.right, corrections)}"


def _turns(source: Source) -> pl.DataFrame:
    """As the build will have them: redacted, without what people do not consent to."""
    settings = parse_settings(source.overrides)
    private = settings.privacy
    events = read(source, settings).events
    work = working_frame(hide_ids(events, private.user_salt) if private.redact else events)
    work = work.filter(pl.col("consent").fill_null(True)).with_row_index("row_order")
    return turns_to_judge(redactor_of(private).frame(work).frame, good_rating=settings.ratings.good)


def _by_rules(sample: Sequence[LabelledTurn]) -> list[bool]:
    texts = pl.DataFrame({"text": [one.turn.text for one in sample]})
    return texts.select(is_correction(pl.col("text"))).to_series().to_list()


def _sample(turn: Turn) -> Sample:
    asked, text = redact_text(turn.conversation()), redact_text(turn.text)
    return sample_of(asked, text, (("user", text),))


def _within(turns: Sequence[Turn], asking: Asking, most: int) -> list[int]:
    """Positions of the turns that have been asked about, and of others as many as `most` new calls are enough for."""
    chosen, new = [], 0
    for at, turn in enumerate(turns):
        known = not asking.new_calls([_sample(turn)])
        if known or not most or new < most:
            chosen.append(at)
            new += not known
    return chosen
