"""The page's first lines: what came out, in a sentence a product person can act on, and what speaks against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from markupsafe import Markup
from raylign.pages.numbers import aligned, percent, short
from raylign.pages.svg import share_bar
from raylign.records.progress import duration
from raylign.records.report.facts import RunFacts
from raylign.records.summary import RunSummary

MAX_FLUENCY_LOSS = 0.3  # nats a token below the start model's own answers; past it readers notice


class Tone(Enum):
    """How a sentence is to be taken."""

    GOOD = "good"
    WARNING = "warning"
    PLAIN = "plain"


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
    remarks: tuple[Remark, ...]
    outcomes: tuple[Outcome, ...]
    details: tuple[tuple[str, str], ...]


def judge(facts: RunFacts) -> Verdict:
    """The verdict of a finished run, or where an unfinished one stands."""
    summary = facts.summary
    if summary is None:
        text = f"This run has not finished: {facts.last_step:,} steps so far."
        return Verdict(text, Tone.PLAIN, None, "", _health(facts), (), _details(facts))
    interval = _interval(summary)
    headline, tone, bar, bar_text = _headline(facts, summary, interval)
    remarks = (*_language(summary), *_gaming(summary), *_health(facts))
    if tone is Tone.GOOD and any(remark.tone is Tone.WARNING for remark in remarks):
        tone = Tone.PLAIN
    return Verdict(headline, tone, bar, bar_text, remarks, _outcomes(summary), _details(facts))


def _interval(summary: RunSummary) -> tuple[float, float] | None:
    if summary.preference_low is None or summary.preference_high is None:
        return None
    return summary.preference_low, summary.preference_high


def _headline(
    facts: RunFacts, summary: RunSummary, interval: tuple[float, float] | None
) -> tuple[str, Tone, Markup | None, str]:
    share = summary.preference_vs_start
    if share is None:
        return f"Trained for {summary.steps:,} steps.", Tone.PLAIN, None, ""
    won = percent(share)
    if interval is None:
        return (
            f"The new answers are preferred {won} of the time.",
            Tone.PLAIN,
            None,
            "The number of comparisons is unknown.",
        )
    low, high = interval
    if low > 0.5:
        headline, tone = f"The new answers are preferred {won} of the time.", Tone.GOOD
    elif high < 0.5:
        headline, tone = f"The new answers are worse: preferred only {won} of the time.", Tone.WARNING
    else:
        headline, tone = f"No clear difference yet: the new answers are preferred {won} of the time.", Tone.PLAIN
    count = f" over {summary.preference_comparisons} held-out prompts" if summary.preference_comparisons else ""
    text = f"95\u00a0% interval {percent(low)} to {percent(high)}{count}; ties count half."
    return headline, tone, share_bar(share, low, high, label="Preference for the new answers"), text


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


def _gaming(summary: RunSummary) -> tuple[Remark, ...]:
    reward, gold = _change(summary, "reward"), _change(summary, "gold_score")
    if reward is None or gold is None or reward <= 0:
        return ()
    if gold <= 0:
        text = (
            "The learned reward rose but the gold score did not: the policy has found something the reward model likes "
            "and people do not. Raise the KL coefficient or collect more preferences."
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
            f"A damaged checkpoint was passed over: {sentence}; the run went on from step {start.resumed_step}. "
            "Check the disk.",
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


def _outcomes(summary: RunSummary) -> tuple[Outcome, ...]:
    rows: tuple[tuple[str, str, float | None, float | None, Callable[[float], Tone]], ...] = (
        ("Gold score (the true taste)", "score", summary.gold_score_before, summary.gold_score_after, _up),
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
        ("Started from", start or "unknown"),
    ]
    if summary is None:
        return (*details, ("Steps", f"{facts.last_step:,} so far"))
    details += [("Steps", f"{summary.steps:,}"), ("Time", duration(summary.seconds_total))]
    if summary.kl_final is not None:
        details.append(("KL to the start model", f"{short(summary.kl_final)} nats a sequence"))
    details += [(_words(name), short(value)) for name, value in summary.extra.items()]
    return tuple(details)


def _words(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]
