"""The page's first lines: what came out, in a sentence a product person can act on, and what speaks against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from raylign.pages.numbers import aligned, short
from raylign.records.model_names import short_model
from raylign.records.progress import duration
from raylign.records.report.evidence import Check
from raylign.records.report.facts import RunFacts
from raylign.records.report.headline import headline_of
from raylign.records.report.panels import Question
from raylign.records.report.shares import Share, held_out_shares
from raylign.records.report.support import Support
from raylign.records.report.tone import Tone
from raylign.records.suite_changes import SuiteChange, sentences
from raylign.records.summary import RunSummary

MAX_FLUENCY_LOSS = 0.3  # nats a token below the start model's own answers; past it readers notice


@dataclass(frozen=True, slots=True)
class Remark:
    """One sentence of the verdict."""

    tone: Tone
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One figure before and after."""

    name: str
    unit: str
    before: str
    after: str
    change: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything above the curves."""

    headline: str
    tone: Tone
    bar: Markup | None
    bar_text: str
    against: str  # how much speaks against the run, one sentence; empty when nothing does
    remarks: tuple[Remark, ...]  # what speaks against it first
    shares: tuple[Share, ...]
    outcomes: tuple[Outcome, ...]
    details: tuple[tuple[str, str], ...]


def judge(
    facts: RunFacts,
    *,
    checks: Sequence[Check] = (),
    questions: Sequence[Question] = (),
    support: Support | None = None,
) -> Verdict:
    """The verdict of a finished run, or where an unfinished one stands.

    `checks` and `questions` are what the page shows below: what they warn of is counted here, so that no line at the
    top looks better than the page.
    """
    summary = facts.summary
    shares = held_out_shares(summary) if summary else ()
    headline = headline_of(facts, summary, shares)
    on_answers = (*_language(summary), *_gaming(summary, facts.judge)) if summary else ()
    thin = [Remark(Tone.WARNING if support.doubtful else Tone.PLAIN, support.sentence)] if support else []
    remarks = (*_alerts(facts), *_suites(facts.suites), *on_answers, *thin, *_health(facts), *_below(checks, questions))
    warnings = [remark for remark in remarks if remark.tone is Tone.WARNING]
    tone = headline.tone
    if tone is Tone.GOOD and warnings:
        tone = Tone.PLAIN
    ordered = (*warnings, *(_subdued(r, bool(warnings)) for r in remarks if r.tone is not Tone.WARNING))
    return Verdict(
        headline=headline.text,
        tone=tone,
        bar=headline.bar,
        bar_text=headline.bar_text,
        against=_against(len(warnings)),
        remarks=ordered,
        shares=shares,
        outcomes=_outcomes(summary, facts.judge) if summary else (),
        details=_details(facts),
    )


def _against(count: int) -> str:
    if not count:
        return ""
    return "One thing speaks against this run." if count == 1 else f"{count} things speak against this run."


def _subdued(remark: Remark, warned: bool) -> Remark:
    """No tick beside warnings: good findings are listed without a mark."""
    return Remark(Tone.PLAIN, remark.text) if warned and remark.tone is Tone.GOOD else remark


def _alerts(facts: RunFacts) -> tuple[Remark, ...]:
    return tuple(
        Remark(Tone.WARNING, f"Alert at step {alert.step}, {alert.kind.value}: {alert.text}") for alert in facts.alerts
    )


def _suites(changes: Sequence[SuiteChange]) -> tuple[Remark, ...]:
    """One sentence for each suite and slice that is worse; else one that none is."""
    worse = tuple(Remark(Tone.WARNING, f"Worse than before on {one.words()}.") for one in changes if one.worse)
    if worse or not changes:
        return worse
    *_, last = sentences(changes)
    return (Remark(Tone.PLAIN, f"{last[:1].upper()}{last[1:]}."),)


def _below(checks: Sequence[Check], questions: Sequence[Question]) -> tuple[Remark, ...]:
    """One sentence for the checks that failed and one for the curves that end outside their range, by name."""
    failed = [f"{check.name.lower()} {check.result}" for check in checks if check.tone is Tone.WARNING]
    outside = [panel.title for question in questions for panel in question.panels if panel.warning]
    found = []
    if failed:
        found.append(Remark(Tone.WARNING, f"Of what was checked, not as it should be: {'; '.join(failed)}."))
    if outside:
        curves = "This curve ends" if len(outside) == 1 else f"These {len(outside)} curves end"
        found.append(Remark(Tone.WARNING, f"{curves} outside the usual range: {', '.join(outside)}."))
    return tuple(found)


def _language(summary: RunSummary) -> tuple[Remark, ...]:
    before, after = summary.fluency_before, summary.fluency_after
    if before is None or after is None:
        return ()
    loss = before - after
    if loss > MAX_FLUENCY_LOSS:
        text = (
            f"The language has suffered: the start model finds the new answers {short(loss)} nats a token less likely "
            f"than its own (limit {MAX_FLUENCY_LOSS}). Read the samples; raise the KL coefficient."
        )
        return (Remark(Tone.WARNING, text),)
    moved = f"{short(loss)} nats a token less" if loss > 0 else f"{short(-loss)} nats a token more"
    text = f"The language was kept: the start model finds the new answers {moved} likely than its own"
    return (Remark(Tone.GOOD, f"{text} (limit {MAX_FLUENCY_LOSS} less)."),)


def _gaming(summary: RunSummary, who: str) -> tuple[Remark, ...]:
    reward, gold = _change(summary, "reward"), _change(summary, "gold_score")
    if reward is None or gold is None or reward <= 0:
        return ()
    if gold <= 0:
        text = (
            "The learned reward rose but the gold score did not: the policy has found something that the reward "
            f"likes and {who or 'the gold rule'} does not. Raise the KL coefficient or collect more preferences."
        )
        return (Remark(Tone.WARNING, text),)
    return (Remark(Tone.GOOD, "The gold score rose together with the learned reward: no sign of a gamed reward."),)


def _change(summary: RunSummary, name: str) -> float | None:
    pairs = {
        "reward": (summary.reward_before, summary.reward_after),
        "gold_score": (summary.gold_score_before, summary.gold_score_after),
    }
    before, after = pairs[name]
    return None if before is None or after is None else after - before


def _health(facts: RunFacts) -> tuple[Remark, ...]:
    missing = sum(value is None for row in facts.history.rows for value in row.values.values())
    damaged = tuple(
        Remark(
            Tone.WARNING,
            f"A damaged checkpoint was skipped: {sentence.removeprefix('skipped ')}; "
            f"the run resumed from step {start.resumed_step}. Check the disk.",
        )
        for start in (facts.manifest.starts if facts.manifest else ())
        for sentence in start.skipped
    )
    if not missing:
        return damaged
    return (
        *damaged,
        Remark(Tone.WARNING, f"{missing} logged numbers were not finite; the curves mark them with a cross."),
    )


def _outcomes(summary: RunSummary, judge_name: str) -> tuple[Outcome, ...]:
    truth = f"Gold score ({judge_name})" if judge_name else "Gold score"
    rows: tuple[tuple[str, str, float | None, float | None, Callable[[float], Tone]], ...] = (
        (truth, "score", summary.gold_score_before, summary.gold_score_after, _up),
        ("Learned reward", "score", summary.reward_before, summary.reward_after, _up),
        ("Fluency", "nats a token", summary.fluency_before, summary.fluency_after, _kept),
    )
    outcomes = []
    for name, unit, before, after, tone in rows:
        if before is not None and after is not None:
            old, new, change = aligned((before, after, after - before))
            sign = "+" if after > before else ""
            outcomes.append(Outcome(name, unit, old, new, sign + change, tone(after - before)))
    return tuple(outcomes)


def _up(change: float) -> Tone:
    return Tone.GOOD if change > 0 else Tone.WARNING


def _kept(change: float) -> Tone:
    return Tone.GOOD if change >= -MAX_FLUENCY_LOSS else Tone.WARNING


def _details(facts: RunFacts) -> tuple[tuple[str, str], ...]:
    summary = facts.summary
    start = summary.policy_start if summary else facts.start_model
    details = [
        ("Method", (summary.algorithm if summary else facts.algorithm) or "unknown"),
        ("Started from", short_model(start)),
    ]
    if summary is None:
        return (*details, ("Steps", f"{facts.last_step:,} so far"))
    again = facts.manifest is not None and len(facts.manifest.starts) > 1
    took = "Time since the last start" if again else "Time"
    details += [("Steps", f"{summary.steps:,}"), (took, duration(summary.seconds_total))]
    if summary.kl_final is not None:
        details.append(("KL to the start model", f"{short(summary.kl_final)} nats a sequence"))
    shown = (item for item in summary.extra.items() if not item[0].startswith("suite_"))  # those have their own table
    details += [(_words(name), short(value)) for name, value in shown]
    return tuple(details)


def _words(name: str) -> str:
    """`eval_held_out_loss` as "Held-out loss": the default set needs no name, another one keeps its own."""
    text = name.removeprefix("eval_").replace("held_out_", "held-out ").replace("_", " ")
    return text[:1].upper() + text[1:]
